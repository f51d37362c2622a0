"""The ready configurations: one `register_competition` each.

The default checkpoint of all is all-MiniLM-L6-v2 (22 million parameters, Apache-2.0): small enough to train on a CPU,
and what the project's own scores are measured with. `mlxbert-convert sentence-transformers/all-MiniLM-L6-v2` makes it;
a larger one (bert-base-uncased) is `checkpoint=` away.
"""

from __future__ import annotations

from mlxbert.factory.competition import Competition, Submission, register_competition
from mlxbert.factory.text_columns import RowText

register_competition(
    Competition(
        name="titanic",
        title="Titanic: Machine Learning from Disaster",
        task="binary",
        target=("Survived",),
        # The name carries title and family; ticket and cabin numbers mean nothing to a language model.
        text=RowText(
            "{Name}. {Sex}, age {Age}, class {Pclass}, {SibSp} siblings or spouses and {Parch} parents or children "
            "aboard, fare {Fare}, cabin {Cabin}, embarked at {Embarked}"
        ),
        metric="accuracy",
        submission=Submission("PassengerId", ("Survived",), "labels"),
        id="PassengerId",
        head={"classes": (0, 1)},
        # 891 rows: three epochs are some sixty steps, too few to leave the majority's answer behind.
        training={"epochs": 8, "batch_size": 16},
        url="https://www.kaggle.com/competitions/titanic",
        license="the competition's rules",
    )
)

register_competition(
    Competition(
        name="house-prices",
        title="House Prices: Advanced Regression Techniques",
        task="regression",
        target=("SalePrice",),
        # Twenty-odd of the 79 columns, those that a buyer would ask for: some 100 word pieces.
        text=RowText(
            "{Neighborhood}, zone {MSZoning}, {BldgType} {HouseStyle}, quality {OverallQual}, "
            "condition {OverallCond}, built {YearBuilt}, remodeled {YearRemodAdd}, living area {GrLivArea}, "
            "first floor {1stFlrSF}, second floor {2ndFlrSF}, basement {TotalBsmtSF} {BsmtQual}, lot {LotArea}, "
            "{TotRmsAbvGrd} rooms, {BedroomAbvGr} bedrooms, {FullBath} baths, kitchen {KitchenQual}, "
            "exterior {ExterQual}, {Fireplaces} fireplaces, garage {GarageCars} cars {GarageArea}, "
            "sold {YrSold} {SaleCondition}"
        ),
        # The competition's RMSE between the logarithms of predicted and sold price; log(1 + y) differs by 1e-5 here.
        metric="rmsle",
        submission=Submission("Id", ("SalePrice",), "values"),
        test=None,
        id="Id",
        head={"log_targets": True},
        training={"epochs": 4, "batch_size": 16},
        url="https://www.kaggle.com/competitions/house-prices-advanced-regression-techniques",
        license="the competition's rules; Ames data by Dean De Cock, 2011",
        note="Where the competition's test.csv is at hand, it has the same columns but the target.",
    )
)

register_competition(
    Competition(
        name="disaster-tweets",
        title="Natural Language Processing with Disaster Tweets",
        task="binary",
        target=("target",),
        text=RowText("text"),
        metric="f1",
        submission=Submission("id", ("target",), "labels"),
        id="id",
        head={"classes": (0, 1)},
        url="https://www.kaggle.com/competitions/nlp-getting-started",
        license="the competition's rules",
        note="69 texts come more than once, 18 of them with both labels: keep equal texts on one side of a fold.",
    )
)

register_competition(
    Competition(
        name="jigsaw-toxic",
        title="Toxic Comment Classification Challenge",
        task="multilabel",
        target=("toxic", "severe_toxic", "obscene", "threat", "insult", "identity_hate"),
        text=RowText("comment_text"),
        metric="roc_auc_macro",
        submission=Submission(
            "id", ("toxic", "severe_toxic", "obscene", "threat", "insult", "identity_hate"), "probabilities"
        ),
        test=None,
        id="id",
        training={"batch_size": 16},
        url="https://www.kaggle.com/competitions/jigsaw-toxic-comment-classification-challenge",
        license="CC0 (comments: CC BY-SA 3.0, Wikipedia)",
        note="In test_labels.csv −1 means not scored. A sample may have a label with fewer positives than folds.",
    )
)

register_competition(
    Competition(
        name="commonlit-readability",
        title="CommonLit Readability Prize",
        task="regression",
        target=("target",),
        text=RowText("excerpt"),
        metric="rmse",
        submission=Submission("id", ("target",), "values"),
        id="id",
        url="https://www.kaggle.com/competitions/commonlitreadabilityprize",
        license="the competition's rules; each excerpt has its own in column `license`",
        note="`standard_error` is of the raters and absent from test.csv; excerpts have some 170 words: length 256.",
    )
)

register_competition(
    Competition(
        name="alexa-stars",
        title="Amazon Alexa reviews: stars",
        task="ordinal",
        target=("rating",),
        text=RowText("verified_reviews"),
        metric="quadratic_kappa",
        submission=Submission("id", ("rating",), "labels"),
        train="amazon_alexa.tsv",
        test=None,
        head={"classes": (1, 2, 3, 4, 5)},
        url="https://www.kaggle.com/datasets/sid321axn/amazon-alexa-reviews",
        license="as on the data set's page",
        note="A TSV with a byte order mark and a padded header. `feedback` is the rating in another form, so never "
        "text. 849 texts are duplicates and some 80 are empty: keep equal texts on one side of a fold.",
    )
)

register_competition(
    Competition(
        name="airline-passengers",
        title="International airline passengers, 1949 to 1960",
        task="time_series",
        target=("Passengers",),
        text=RowText("{Month}: {Passengers} thousand passengers"),
        metric="mae",
        submission=Submission("Month", ("Passengers",), "values"),
        train="airline-passengers.csv",
        test=None,
        id="Month",
        time="Month",
        folds=4,
        # A hundred windows: an encoder that learns from them, or a longer training, forecasts the next ones worse (out
        # of fold). The best epoch of some twenty overlapping forecasts is chance, so the last one is kept.
        training={
            "epochs": 15,
            "batch_size": 16,
            "head_rate": 1e-3,
            "freeze_layers": 6,
            "keep": "last",
            "seeds": (0, 1, 2),
        },
        # Growth and season multiply: on the logarithm they add up.
        head={"horizon": 12, "window": 24, "period": 12, "calendar": ("year",), "log_targets": True},
        url="https://github.com/jbrownlee/Datasets",
        license="public domain facts; Box and Jenkins, Time Series Analysis, 1976, series G",
        note="One series of 144 months; hold out the last 12.",
    )
)
