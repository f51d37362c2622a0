"""`Competition`: all that turns a competition's files into a model and a submission, as data; and their registry.

The ready ones are in `mlxbert.data.competitions`; `register_competition` adds another, which is all there is to it.

The ready configurations: one `register_competition` each.

The default checkpoint of all is all-MiniLM-L6-v2 (22 million parameters, Apache-2.0): small enough to train on a CPU,
and what the project's own scores are measured with. `mlxbert-convert sentence-transformers/all-MiniLM-L6-v2` makes it;
a larger one (bert-base-uncased) is `checkpoint=` away.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Literal

from heads.errors import HeadError, unknown_name
from heads.head_registry import COMPETITION_TYPES
from heads.metrics import get_metric
from mlxbert.data.submission import Submission
from mlxbert.data.text_columns import RowText
from mlxbert.errors import MLXBertError

FoldKind = Literal["plain", "stratified", "binned", "multilabel_stratified", "group", "forward"]
FOLD_KINDS: Mapping[str, tuple[FoldKind, ...]] = MappingProxyType(
    {
        "binary": ("stratified", "plain", "group"),
        "multiclass": ("stratified", "plain", "group"),
        "multilabel": ("multilabel_stratified", "plain", "group"),
        "regression": ("binned", "plain", "group"),
        "ordinal": ("stratified", "plain", "group"),
        "time_series": ("forward",),
    }
)
"""How rows are dealt into folds, by competition type, the usual one first. "binned": stratified by quantiles."""


def fold_kinds(task: str, time: str | None) -> tuple[FoldKind, ...]:
    """Likewise where rows may have times: what comes later is then held out, whatever the task."""
    kinds = FOLD_KINDS[task]
    return kinds if time is None or "forward" in kinds else ("forward", *kinds)


class CompetitionError(MLXBertError):
    """A configuration that contradicts itself, an unknown name, or one that is taken."""


@dataclass(frozen=True)
class Competition:
    """A ready configuration.

    Attributes:
        name: what it is looked up by.
        title: for people.
        task: the competition type, which chooses the head.
        target: the target's column, or columns.
        text: how a row becomes a text.
        metric: what is optimized and reported, of `heads.metrics.METRICS`: the competition's own where there is one.
        submission: the format.
        train: the name of the training file.
        test: that of the file to predict; None: there is none, hold rows out.
        id: the column that names a row; None: there is none.
        group: rows of one value never lie on both sides of a fold.
        time: the column of times, for forward-chaining folds.
        folds: how many.
        fold_kind: how; None: the usual one (`fold_kinds`).
        head: options of the head: classes, horizon, log_targets, …: the target's transform is one of them.
        pooling: of `mlxbert.pooling.CHOICES`.
        training: settings of `mlxbert.training.config.TrainingConfig` that these data need, in place of its defaults.
        checkpoint: the default encoder's id on the Hub, to be converted once.
        url: where the data come from.
        license: of the data, as their page has it.
        note: what else one must know about the data.
    """

    name: str
    title: str
    task: str
    target: tuple[str, ...]
    text: RowText
    metric: str
    submission: Submission
    url: str
    license: str
    train: str = "train.csv"
    test: str | None = "test.csv"
    id: str | None = None
    group: str | None = None
    time: str | None = None
    folds: int = 5
    fold_kind: FoldKind | None = None
    head: Mapping[str, Any] = field(default_factory=dict, hash=False)
    pooling: str = "mean"
    training: Mapping[str, Any] = field(default_factory=dict, hash=False)
    checkpoint: str = "sentence-transformers/all-MiniLM-L6-v2"
    note: str = ""

    def __post_init__(self) -> None:
        """Refuse what cannot be: see `CompetitionError`."""
        if not re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", self.name):
            raise CompetitionError(f"competition name {self.name!r}: give lower case words joined by '-'")
        try:
            if self.task not in COMPETITION_TYPES:
                raise unknown_name("competition type", self.task, COMPETITION_TYPES)
            metric = get_metric(self.metric)
        except HeadError as error:
            raise CompetitionError(f"competition {self.name!r}: {error}") from error
        kinds = fold_kinds(self.task, self.time)
        if self.fold_kind is None:
            object.__setattr__(self, "fold_kind", kinds[0])
        object.__setattr__(self, "head", dict(self.head))
        object.__setattr__(self, "training", dict(self.training))
        leaked = [name for name in self.target if name in self.text.columns and self.task != "time_series"]
        labels_of_one = self.task in ("binary", "multiclass", "ordinal")
        problems = {
            f"metric {self.metric!r} is for {', '.join(metric.competition_types)}, not for {self.task}": (
                self.task not in metric.competition_types
            ),
            f"folds must be a whole number from 2 on, not {self.folds!r}": (
                isinstance(self.folds, bool) or not isinstance(self.folds, int) or self.folds < 2
            ),
            f"fold_kind {self.fold_kind!r} does not fit {self.task}; fitting: {', '.join(kinds)}": (
                self.fold_kind not in kinds
            ),
            "fold_kind 'group' needs group='column'": self.fold_kind == "group" and self.group is None,
            "fold_kind 'forward' needs time='column'": self.fold_kind == "forward" and self.time is None,
            "there is no target": not self.target,
            f"{self.task} has one target column, not {len(self.target)}": (
                len(self.target) > 1 and (labels_of_one or self.task == "time_series")
            ),
            f"the text has the target column {leaked[0] if leaked else None!r}, which gives the answer away": bool(
                leaked
            ),
            f"a submission of {self.submission.values} does not fit {self.task}": (
                (self.submission.values == "values") != (self.task in ("regression", "time_series"))
            ),
            "the submission has no prediction columns, or one twice": (
                not self.submission.columns
                or len({self.submission.id_column, *self.submission.columns}) <= len(self.submission.columns)
            ),
        }
        for problem, found in problems.items():
            if found:
                raise CompetitionError(f"competition {self.name!r}: {problem}")

    @property
    def converted(self) -> str:
        """Where `mlxbert-convert` puts the default checkpoint unless told otherwise."""
        return f"mlx_models/{self.checkpoint.rsplit('/', 1)[-1]}"

    @property
    def converted_places(self) -> tuple[str, ...]:
        """Where the converted default checkpoint may lie: `converted`, or where `make demo` puts all-MiniLM-L6-v2."""
        demo = ("mlx_models/minilm",) if self.checkpoint == "sentence-transformers/all-MiniLM-L6-v2" else ()
        return (self.converted, *demo)


_COMPETITIONS: dict[str, Competition] = {}


def register_competition(competition: Competition) -> Competition:
    """Make a configuration known under its name; returns it.

    Raises:
        CompetitionError: the name is taken by another one.
    """
    if _COMPETITIONS.setdefault(competition.name, competition) != competition:
        raise CompetitionError(
            f"competition {competition.name!r} is registered already ({_COMPETITIONS[competition.name].title}); "
            "fix: give one another name, or unregister_competition it first"
        )
    return competition


def unregister_competition(name: str) -> None:
    """Forget a configuration; for notebooks, where a cell that registers one is changed and run again."""
    get_competition(name)
    del _COMPETITIONS[name]


def get_competition(name: str) -> Competition:
    """The configuration of this name.

    Raises:
        CompetitionError: there is none; the nearest names are given.
    """
    found = registered_competitions()
    if name not in found:
        raise CompetitionError(str(unknown_name("competition", name, found)))
    return found[name]


def registered_competitions() -> Mapping[str, Competition]:
    """Every configuration by name, in the order of registration; a copy."""
    return dict(_COMPETITIONS)


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
