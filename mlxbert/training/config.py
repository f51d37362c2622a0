"""What other tools call our settings: transformers, Keras, scikit-learn, Lightning, Kaggle notebooks.

`TrainingConfig`: every number and choice that a fine-tuning depends on, with the defaults that work unseen.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any, Self

from heads.errors import HeadError, unknown_name
from mlxbert.training.gradients import AWP, FGM
from mlxbert.training.optimizer import SHAPES, ConfigurationError, Schedule
from mlxbert.training.step import StepSettings

_USUAL: dict[str, str] = {
    "rate": "learning_rate lr max_lr base_lr peak_lr peak_learning_rate encoder_lr learningrate",
    "head_rate": "head_lr classifier_lr decoder_lr head_learning_rate lr_head",
    "epochs": "epoch num_train_epochs num_epochs n_epochs nb_epochs max_epochs n_epoch train_epochs",
    "batch_size": "per_device_train_batch_size per_gpu_train_batch_size train_batch_size batch bs batchsize bsz",
    "evaluation_batch_size": (
        "per_device_eval_batch_size eval_batch_size valid_batch_size val_batch_size test_batch_size "
        "inference_batch_size"
    ),
    "accumulation": (
        "gradient_accumulation_steps gradient_accumulation grad_accum accumulate_grad_batches accum_steps"
    ),
    "max_length": (
        "max_seq_length max_seq_len max_len seq_len seq_length sequence_length maxlen max_tokens model_max_length"
    ),
    "pooling": "pooling_mode pooling_strategy pooler",
    "weight_decay": "wd l2 decay",
    "layer_decay": "llrd layerwise_lr_decay layer_wise_decay layerwise_decay lr_decay layer_lr_decay",
    "schedule": "lr_scheduler_type lr_scheduler scheduler lr_schedule scheduler_type",
    "warmup": "warmup_ratio warmup_steps num_warmup_steps warmup_proportion warm_up",
    "max_norm": "max_grad_norm gradient_clip_val clip_norm clipnorm grad_clip clip gradient_clipping",
    "dropout": "hidden_dropout_prob dropout_rate classifier_dropout hidden_dropout drop_rate",
    "ema": "ema_decay use_ema",
    "freeze_layers": "freeze n_freeze frozen_layers freeze_n_layers",
    "freeze_embeddings": "freeze_embedding freeze_emb",
    "reinitialize_layers": "reinit_layers reinit_n_layers reinit reinitialize",
    "adversarial": "fgm awp adv adversarial_training",
    "compute_dtype": "dtype fp16 bf16 half precision mixed_precision amp torch_dtype",
    "checkpoint_layers": "gradient_checkpointing grad_checkpointing grad_checkpoint",
    "metric": "metric_for_best_model scoring eval_metric monitor metrics",
    "evaluations": "eval_steps evals_per_epoch val_check_interval evaluation_strategy eval_strategy",
    "patience": "early_stopping_patience early_stopping early_stopping_rounds",
    "keep": "load_best_model_at_end save_best save_best_only",
    "folds": "n_splits num_folds n_folds nfolds kfold k_folds k cv",
    "fold_kind": "cv_strategy fold_type splitter split_strategy",
    "valid_size": "test_size val_size validation_split validation_size valid_fraction val_split",
    "seeds": "seed random_state random_seed rng",
    "save_every": "save_steps save_interval checkpoint_every",
    "model": (
        "model_name model_name_or_path model_path checkpoint pretrained pretrained_model backbone encoder "
        "model_id base_model"
    ),
    "target": (
        "label labels label_column label_col labels_column target_column target_col target_name y y_col label_names"
    ),
    "text": (
        "text_column text_col text_columns text_field input input_column sentence sentence1 x text_a prompt "
        "feature features columns"
    ),
    "pair": "text_pair text_b sentence2 second pair_column",
    "id": "id_column id_col id_name row_id index_col idx",
    "group": "groups group_column group_col groupby",
    "time": "date time_column date_column timestamp datetime time_col date_col",
    "ignore": "drop exclude drop_columns ignore_columns",
    "classes": "class_names label_list class_labels class",
    "task": "task_type problem_type objective_type",
    "data": "train train_file train_data train_csv train_path train_dataset dataset data_path data_file input_file",
    "test": "test_file test_data test_csv test_path predict_file test_dataset",
    "valid": (
        "val valid_file validation_file eval_file val_file validation validation_data eval_dataset valid_data "
        "dev dev_file"
    ),
    "hold_out": "holdout holdout_size hold_out_size",
    "sample_submission": "sample submission sample_sub submission_file sample_submission_file",
    "values": "output_type proba probabilities predict_proba submission_values",
    "out": "output output_dir out_dir save_dir save_path output_path outdir output_file",
    "encoding": "file_encoding charset",
    "head": (
        "objective loss horizon window period label_smoothing pos_weight class_weight class_weights "
        "log_targets focal gamma calendar baseline"
    ),
    "trackers": "report_to log logger loggers wandb tensorboard",
    "overwrite": "overwrite_output_dir force exist_ok",
    "resume": "resume_from_checkpoint continue",
    "average": "averaging blend_method ensemble how",
    "run": "run_dir model_dir",
}
_OURS = {name: ours for ours, names in _USUAL.items() for name in names.split()}


def our_name(name: str) -> str | None:
    """Return what we call a setting that other tools call `name`; None: unknown. `-` and capitals do not matter."""
    return _OURS.get(name.strip("-").replace("-", "_").lower())


def unknown_setting(name: str, known: Collection[str]) -> HeadError:
    """Return the error for a setting that there is not: it names ours of that meaning, or the nearest ones."""
    ours = our_name(name)
    if ours in known:
        return HeadError(f"there is no setting named {name!r}: did you mean {ours!r}?")
    return unknown_name("setting", name, known)


ADVERSARIAL = {"fgm": FGM, "awp": AWP}


def _setting(default: Any, help: str, *, least: float | None = None, most: float | None = None) -> Any:
    return field(default=default, metadata={"help": help, "least": least, "most": most})


@dataclass(frozen=True)
class TrainingConfig:
    """How models are trained and cross-validated; the flags of `mlxbert train` are these fields.

    Each field's `metadata["help"]` says what it is. The defaults: three epochs of batches of 32, AdamW with a linear
    schedule after 10 % warm-up and gradients clipped at 1 are what BERT is fine-tuned with (Devlin et al. 2018, A.3;
    Mosbach et al. 2020, https://arxiv.org/abs/2006.04884, for warm-up and bias correction); the rate depends on the
    encoder's size (`mlxbert.training.optimizer.default_learning_rate` has the formula and its reason).

    Raises:
        ConfigurationError: on construction; names the setting, its value and what it may be.
    """

    epochs: int = _setting(3, "Passes over the training rows.", least=1)
    batch_size: int = _setting(32, "Rows a batch.", least=1)
    accumulation: int = _setting(1, "Batches whose gradients make one step.", least=1)
    max_length: int = _setting(256, "Tokens that a text is cut to.", least=2)
    pooling: str = _setting("mean", "How tokens become one vector: mean, cls, max, pooler, attention, ….")
    rate: float | None = _setting(None, "Peak learning rate.  [default: by the encoder's size]", least=0)
    head_rate: float | None = _setting(None, "Peak rate of head and pooling.  [default: the encoder's]", least=0)
    weight_decay: float = _setting(0.01, "Of matrices; biases and LayerNorms never decay.", least=0)
    layer_decay: float = _setting(1.0, "Each layer's rate is this times that of the layer above.", least=0, most=1)
    schedule: str = _setting("linear", "Of the rate after the warm-up: linear, cosine, constant, polynomial.")
    warmup: float = _setting(0.1, "Share of the steps in which the rate rises.", least=0, most=1)
    schedule_end: float = _setting(0.0, "The rate at the end, as a share of the peak.", least=0, most=1)
    schedule_power: float = _setting(2.0, "Of the polynomial schedule.", least=0)
    max_norm: float | None = _setting(1.0, "Gradients are clipped to this norm; 0: not.", least=0)
    dropout: float | None = _setting(None, "In encoder and head.  [default: the checkpoint's]", least=0, most=0.9)
    ema: float | None = _setting(None, "Decay of a moving average of the weights, such as 0.999.", least=0, most=1)
    freeze_embeddings: bool = _setting(False, "Leave the embeddings as they are.")
    freeze_layers: int = _setting(0, "Leave the embeddings and this many lowest layers as they are.", least=0)
    reinitialize_layers: int = _setting(0, "Train this many top layers from random weights.", least=0)
    adversarial: str | None = _setting(None, "Adversarial training: fgm (embeddings) or awp (weights).")
    adversarial_size: float | None = _setting(None, "How far it moves: fgm's epsilon (1), awp's gamma (0.001).")
    compute_dtype: str = _setting("float32", "What the encoder computes in: float32, bfloat16, float16.")
    checkpoint_layers: bool = _setting(False, "Recompute each layer in the backward pass: less memory, more time.")
    compiled: bool = _setting(True, "Compile the training step.")
    on_nonfinite: str = _setting("stop", "At a loss that is not finite: stop, or skip the batch.")
    metric: str | None = _setting(None, "What is optimized, of heads.metrics.  [default: the task's]")
    evaluations: int = _setting(1, "Evaluations an epoch, evenly spaced.", least=1)
    patience: int | None = _setting(None, "Stop after this many evaluations without a better one.", least=1)
    keep: str = _setting("best", "The weights kept of a fold: best (by the metric), or last.")
    calibrate: bool = _setting(True, "Fit temperature and thresholds on each fold's held-out rows.")
    folds: int = _setting(5, "Folds; 1: one held-out part.", least=1)
    fold_kind: str | None = _setting(None, "plain, stratified, multilabel_stratified, binned, group, forward.")
    valid_size: float | None = _setting(None, "With one fold: the share (below 1) or number of rows held out.")
    fold_seed: int = _setting(0, "Of the folds.", least=0)
    seeds: tuple[int, ...] = _setting((0,), "A model for each seed and fold; their predictions are averaged.")
    evaluation_batch_size: int = _setting(64, "Rows a batch where nothing is trained.", least=1)
    save_every: int | None = _setting(None, "Save after this many batches.  [default: every few minutes]", least=1)

    def __post_init__(self) -> None:
        """Refuse what cannot be: see `ConfigurationError`."""
        object.__setattr__(self, "seeds", _seeds(self.seeds))
        for one in dataclasses.fields(self):
            _check(one, getattr(self, one.name))
        choices = {
            "schedule": tuple(SHAPES),
            "adversarial": (None, *ADVERSARIAL),
            "keep": ("best", "last"),
            "on_nonfinite": ("stop", "skip"),
        }
        for name, allowed in choices.items():
            if getattr(self, name) not in allowed:
                known = ", ".join(str(one) for one in allowed if one is not None)
                raise ConfigurationError(f"{name} {getattr(self, name)!r} is unknown; known: {known}")
        if self.adversarial_size is not None and self.adversarial is None:
            raise ConfigurationError("adversarial_size goes with adversarial; fix: adversarial='fgm' or 'awp'")
        if self.adversarial == "fgm" and (self.freeze_embeddings or self.freeze_layers):
            raise ConfigurationError(
                "adversarial 'fgm' moves the word embeddings, which are frozen; fix: train them, or adversarial='awp'"
            )
        if self.valid_size is not None and self.folds != 1:
            raise ConfigurationError(f"valid_size goes with folds=1, not with {self.folds} folds; fix: leave one out")
        # What these refuse is refused here.
        self.step_settings()
        Schedule(1, self.schedule, 0, self.schedule_end, self.schedule_power)

    @classmethod
    def make(cls, settings: Mapping[str, Any]) -> Self:
        """From settings by name, such as those of a run's `run.json`.

        Raises:
            ConfigurationError: one that there is not; the nearest names are given.
        """
        known = {one.name for one in dataclasses.fields(cls)}
        for name in settings:
            if name not in known:
                raise ConfigurationError(str(unknown_setting(name, known)))
        return cls(**settings)

    def to_dict(self) -> dict[str, Any]:
        """JSON-able; `make` reads it."""
        return {**dataclasses.asdict(self), "seeds": list(self.seeds)}

    def step_settings(self) -> StepSettings:
        """What `TrainStep` is told."""
        adversarial: Any = None
        if self.adversarial is not None:
            size = () if self.adversarial_size is None else (self.adversarial_size,)
            adversarial = ADVERSARIAL[self.adversarial](*size)
        return StepSettings(
            max_norm=self.max_norm or None,
            ema_decay=self.ema,
            compute_dtype=self.compute_dtype,
            checkpoint_layers=self.checkpoint_layers,
            adversarial=adversarial,
            on_nonfinite=self.on_nonfinite,
            compiled=self.compiled,
        )


def _seeds(seeds: Any) -> tuple[int, ...]:
    made = (seeds,) if isinstance(seeds, int) and not isinstance(seeds, bool) else tuple(seeds)
    whole = all(isinstance(one, int) and not isinstance(one, bool) and 0 <= one < 2**31 for one in made)
    if not made or not whole or len(set(made)) < len(made):
        raise ConfigurationError(f"seeds must be different whole numbers from 0 on, not {seeds!r}")
    return made


def _check(one: dataclasses.Field[Any], value: Any) -> None:
    """Type and range of one setting, by its annotation and metadata."""
    kind, _, optional = str(one.type).partition(" | ")
    if value is None and optional:
        return
    if kind == "tuple[int, ...]":
        return
    wanted = {"int": "a whole number", "float": "a number", "str": "a word", "bool": "true or false"}[kind]
    fits = {
        "int": isinstance(value, int) and not isinstance(value, bool),
        "float": isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value),
        "str": isinstance(value, str),
        "bool": isinstance(value, bool),
    }[kind]
    least, most = one.metadata["least"], one.metadata["most"]
    if fits and (least is None or value >= least) and (most is None or value <= most):
        return
    limits = (f" from {least}" if least is not None else "") + (f" to {most}" if most is not None else "")
    raise ConfigurationError(f"{one.name} must be {wanted}{limits}, not {value!r}")
