"""`Competition`: everything that turns a competition's files into a model and a submission, as data.

The ready ones are in one table; `register_competition` adds another.
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
"""Ways to deal rows into folds, by competition type, the usual one first. "binned": stratified by quantiles."""


def fold_kinds(task: str, time: str | None) -> tuple[FoldKind, ...]:
    """Return the ways to deal rows into folds, the usual one first; with times, later rows are held out."""
    kinds = FOLD_KINDS[task]
    return kinds if time is None or "forward" in kinds else ("forward", *kinds)


class CompetitionError(MLXBertError):
    """The configuration contradicts itself, or its name is unknown, or in use."""


@dataclass(frozen=True)
class Competition:
    """A ready configuration.

    Attributes:
        name: key of the registry.
        title: for people.
        task: the competition type, which chooses the head.
        target: the target's column, or columns.
        text: how a row becomes a text.
        metric: of `heads.metrics.METRICS`, optimized and reported: the competition's own where there is one.
        submission: the format.
        train: name of the training file.
        test: name of the file to predict; None: there is none, hold rows out.
        id: the column that names a row; None: there is none.
        group: a column; rows of one value are never on both sides of a fold.
        time: the column of times, for forward-chaining folds.
        folds: number of folds.
        fold_kind: None: the usual one (`fold_kinds`).
        head: options of the head: classes, horizon, log_targets (the target's transform), ….
        pooling: of `mlxbert.pooling.CHOICES`.
        training: fields of `mlxbert.training.config.TrainingConfig` that differ from its defaults.
        checkpoint: the default encoder's id on the Hub, to be converted once; a small one, for a quick try.
        encoder: id on the Hub of an encoder that suits the data better and trains longer; "": none is named.
        url: of the data.
        license: of the data, as their page has it.
        note: other facts about the data.
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
    encoder: str = ""
    note: str = ""

    def __post_init__(self) -> None:
        """Refuse a configuration that contradicts itself: see `CompetitionError`."""
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
        has_one_target = self.task in ("binary", "multiclass", "ordinal", "time_series")
        has_numbers = self.task in ("regression", "time_series")
        columns = self.submission.columns
        checks: list[tuple[bool, str]] = [
            (
                self.task not in metric.competition_types,
                f"metric {self.metric!r} is for {', '.join(metric.competition_types)}, not for {self.task}",
            ),
            (
                isinstance(self.folds, bool) or not isinstance(self.folds, int) or self.folds < 2,
                f"folds must be a whole number from 2 on, not {self.folds!r}",
            ),
            (
                self.fold_kind not in kinds,
                f"fold_kind {self.fold_kind!r} does not fit {self.task}; fitting: {', '.join(kinds)}",
            ),
            (self.fold_kind == "group" and self.group is None, "fold_kind 'group' needs group='column'"),
            (self.fold_kind == "forward" and self.time is None, "fold_kind 'forward' needs time='column'"),
            (not self.target, "there is no target"),
            (
                has_one_target and len(self.target) > 1,
                f"{self.task} has one target column, not {len(self.target)}",
            ),
            (bool(leaked), f"the text has the target column {''.join(leaked[:1])!r}, which gives the answer away"),
            (
                (self.submission.values == "values") != has_numbers,
                f"a submission of {self.submission.values} does not fit {self.task}",
            ),
            (
                not columns or len({self.submission.id_column, *columns}) <= len(columns),
                "the submission has no prediction columns, or one twice",
            ),
        ]
        for is_wrong, problem in checks:
            if is_wrong:
                raise CompetitionError(f"competition {self.name!r}: {problem}")

    @property
    def converted(self) -> str:
        """The default directory of the converted checkpoint, as `mlxbert-convert` chooses it."""
        return f"mlx_models/{self.checkpoint.rsplit('/', 1)[-1]}"

    @property
    def converted_places(self) -> tuple[str, ...]:
        """Possible places of the converted checkpoint: `converted`, or that of `make demo` for all-MiniLM-L6-v2."""
        demo = ("mlx_models/minilm",) if self.checkpoint == "sentence-transformers/all-MiniLM-L6-v2" else ()
        return (self.converted, *demo)


# The default checkpoint, all-MiniLM-L6-v2, has 22 million parameters (Apache-2.0): a CPU can train it, and the
# README's scores are of it. `mlxbert-convert sentence-transformers/all-MiniLM-L6-v2` converts it; `checkpoint=` names
# another one. `encoder` is what people fine-tune for such data: DeBERTa-v3 (He et al. 2021,
# https://arxiv.org/abs/2111.09543), whose small model has 44 million parameters beside its word embeddings.
_ENGLISH = "microsoft/deberta-v3-small"
_ENGLISH_LARGER = "microsoft/deberta-v3-base"

_READY = (
    Competition(
        name="titanic",
        title="Titanic: Machine Learning from Disaster",
        task="binary",
        target=("Survived",),
        # The name has title and family; ticket numbers mean nothing to a language model.
        text=RowText(
            "{Name}. {Sex}, age {Age}, class {Pclass}, {SibSp} siblings or spouses and {Parch} parents or children "
            "aboard, fare {Fare}, cabin {Cabin}, embarked at {Embarked}"
        ),
        metric="accuracy",
        submission=Submission("PassengerId", ("Survived",), "labels"),
        id="PassengerId",
        head={"classes": (0, 1)},
        # 891 rows: three epochs are some sixty steps, after which the model still predicts the majority.
        training={"epochs": 8, "batch_size": 16},
        encoder=_ENGLISH,
        url="https://www.kaggle.com/competitions/titanic",
        license="the competition's rules",
    ),
    Competition(
        name="house-prices",
        title="House Prices: Advanced Regression Techniques",
        task="regression",
        target=("SalePrice",),
        # Twenty-odd of the 79 columns, those that a buyer asks for: some 100 word pieces.
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
        encoder=_ENGLISH,
        url="https://www.kaggle.com/competitions/house-prices-advanced-regression-techniques",
        license="the competition's rules; Ames data by Dean De Cock, 2011",
        note="Where the competition's test.csv is at hand, it has the same columns but the target.",
    ),
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
        encoder=_ENGLISH,
        url="https://www.kaggle.com/competitions/nlp-getting-started",
        license="the competition's rules",
        note="69 texts come more than once, 18 of them with both labels: keep equal texts on one side of a fold.",
    ),
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
        encoder=_ENGLISH_LARGER,
        url="https://www.kaggle.com/competitions/jigsaw-toxic-comment-classification-challenge",
        license="CC0 (comments: CC BY-SA 3.0, Wikipedia)",
        note="In test_labels.csv −1 means not scored. A sample may have a label with fewer positives than folds.",
    ),
    Competition(
        name="commonlit-readability",
        title="CommonLit Readability Prize",
        task="regression",
        target=("target",),
        text=RowText("excerpt"),
        metric="rmse",
        submission=Submission("id", ("target",), "values"),
        id="id",
        encoder=_ENGLISH_LARGER,
        url="https://www.kaggle.com/competitions/commonlitreadabilityprize",
        license="the competition's rules; each excerpt has its own in column `license`",
        note="`standard_error` is of the raters and absent from test.csv; excerpts have some 170 words: length 256.",
    ),
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
        encoder=_ENGLISH,
        url="https://www.kaggle.com/datasets/sid321axn/amazon-alexa-reviews",
        license="as on the data set's page",
        note="A TSV with a byte order mark and a padded header. `feedback` is the rating in another form, so never "
        "text. 849 texts are duplicates and some 80 are empty: keep equal texts on one side of a fold.",
    ),
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
        # Its texts are months and numbers: a larger encoder knows nothing more about them.
        encoder="sentence-transformers/all-MiniLM-L6-v2",
        # A hundred windows: a trained encoder, or a longer training, is worse out of fold. Some twenty overlapping
        # forecasts are too few to choose the best epoch, so the last one is kept.
        training={
            "epochs": 15,
            "batch_size": 16,
            "head_rate": 1e-3,
            "freeze_layers": 6,
            "keep": "last",
            "seeds": (0, 1, 2),
        },
        # Growth and season multiply; on a logarithmic scale they add up.
        head={"horizon": 12, "window": 24, "period": 12, "calendar": ("year",), "log_targets": True},
        url="https://github.com/jbrownlee/Datasets",
        license="public domain facts; Box and Jenkins, Time Series Analysis, 1976, series G",
        note="One series of 144 months; hold out the last 12.",
    ),
)

_COMPETITIONS = {competition.name: competition for competition in _READY}


def register_competition(competition: Competition) -> Competition:
    """Register a configuration under its name, and return it.

    Raises:
        CompetitionError: another configuration has the name.
    """
    if _COMPETITIONS.setdefault(competition.name, competition) != competition:
        raise CompetitionError(
            f"competition {competition.name!r} is registered already ({_COMPETITIONS[competition.name].title}); "
            "fix: give one another name, or unregister_competition it first"
        )
    return competition


def unregister_competition(name: str) -> None:
    """Remove a configuration from the registry; for a notebook cell that is changed and run again."""
    get_competition(name)
    del _COMPETITIONS[name]


def get_competition(name: str) -> Competition:
    """Return the configuration of this name.

    Raises:
        CompetitionError: there is none; the message has the nearest names.
    """
    if name not in _COMPETITIONS:
        raise CompetitionError(str(unknown_name("competition", name, _COMPETITIONS)))
    return _COMPETITIONS[name]


def registered_competitions() -> Mapping[str, Competition]:
    """Return a copy of the registry: every configuration by name, in the order of registration."""
    return dict(_COMPETITIONS)
