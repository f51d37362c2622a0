"""`TrainingConfig`: every number and choice that a fine-tuning depends on, with defaults that suit most data.

Also the names that other tools give to our settings: transformers, Keras, scikit-learn, Lightning, Kaggle notebooks.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any, Self

from heads.errors import HeadError, unknown_name
from mlxbert.adapters.settings import LoRA
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
    "lora": "peft peft_config lora_config adapter adapters qlora dora use_dora lora_r lora_rank lora_alpha",
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
    "threads": "num_threads n_threads n_jobs nthread cpus num_cores",
    "workers": "num_workers n_workers processes num_processes nproc",
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
    """Return our name of a setting that other tools call `name`; None: unknown. `-` and capitals do not matter."""
    return _OURS.get(name.strip("-").replace("-", "_").lower())


def unknown_setting(name: str, known: Collection[str]) -> HeadError:
    """Return the error for an unknown setting: it gives our name of that meaning, or the nearest names."""
    ours = our_name(name)
    if ours in known:
        return HeadError(f"there is no setting named {name!r}: did you mean {ours!r}?")
    return unknown_name("setting", name, known)


ADVERSARIAL = {"fgm": FGM, "awp": AWP}


def argument(
    default: Any,
    group: str,
    help: str,
    *,
    least: float | None = None,
    most: float | None = None,
    **option: Any,
) -> Any:
    """Return a dataclass field that is an argument of `mlxbert.train` and an option of `mlxbert train`.

    Args:
        default: its value where it is not given; MISSING: it must be given.
        group: heading under which `mlxbert train --help` lists it.
        help: what it means, for `--help` and for the documentation of `mlxbert.train`.
        least: smallest value; None: no limit. Likewise `most`.
        option: of `click.option`, where the field's name and type do not say it: `flag`, `metavar`, `choices`,
            `switch` (there is no --no-… for it).
    """
    metadata = {"group": group, "help": help, "least": least, "most": most} | option
    if isinstance(default, dict):
        return field(default_factory=default.copy, hash=False, metadata=metadata)
    return field(default=default, metadata=metadata)


@dataclass(frozen=True)
class TrainingConfig:
    """How models are trained and cross-validated; the flags of `mlxbert train` are these fields.

    Each field's `metadata["help"]` says what it is. The defaults: three epochs of batches of 32, AdamW with a linear
    schedule after 10 % warm-up and gradients clipped at 1 are what BERT is fine-tuned with (Devlin et al. 2018, A.3;
    Mosbach et al. 2020, https://arxiv.org/abs/2006.04884, for warm-up and bias correction); the rate depends on the
    encoder's size (`mlxbert.training.optimizer.default_rates`; docs/tuning.md has the measurements).

    Raises:
        ConfigurationError: on construction; names the setting, its value and what it may be.
    """

    epochs: int = argument(3, "Optimization", "Number of passes over the training rows.", least=1)
    batch_size: int = argument(32, "Memory", "Rows in a training batch.", least=1)
    accumulation: int = argument(
        1, "Memory", "Batches whose gradients are summed for one step of the optimizer.", least=1
    )
    max_length: int = argument(256, "Memory", "Longest text in tokens; longer texts are cut.", least=2)
    pooling: str = argument(
        "mean", "Model", "How token vectors become one vector per text: mean, cls, max, pooler, attention, …."
    )
    rate: float | None = argument(
        None,
        "Optimization",
        "Peak learning rate.  [default by size: MiniLM-L6 and smaller 1.5e-4, base 3e-5, large 2e-5; with --lora ten "
        "times as much]",
        least=0,
    )
    head_rate: float | None = argument(
        None,
        "Optimization",
        "Peak learning rate of head and pooling.  [default: --rate if given, else by size: MiniLM-L6 1.5e-3]",
        least=0,
    )
    weight_decay: float = argument(
        0.01, "Optimization", "Weight decay of matrices; biases and LayerNorms have none.", least=0
    )
    layer_decay: float = argument(
        1.0, "Optimization", "Learning rate of a layer, as a share of that of the layer above it.", least=0, most=1
    )
    schedule: str = argument(
        "linear", "Optimization", "How the rate falls after the warm-up: linear, cosine, constant, polynomial."
    )
    warmup: float = argument(
        0.1, "Optimization", "Share of the steps in which the rate rises to its peak.", least=0, most=1
    )
    schedule_end: float = argument(
        0.0, "Optimization", "Learning rate at the end, as a share of the peak.", least=0, most=1
    )
    schedule_power: float = argument(2.0, "Optimization", "Power of the polynomial schedule.", least=0)
    max_norm: float | None = argument(1.0, "Optimization", "Clip gradients to this norm; 0: do not clip.", least=0)
    dropout: float | None = argument(
        None, "Model", "Dropout in encoder and head.  [default: that of the checkpoint]", least=0, most=0.9
    )
    ema: float | None = argument(
        None, "Optimization", "Decay of a moving average of the weights, such as 0.999.", least=0, most=1
    )
    freeze_embeddings: bool = argument(False, "Model", "Do not train the embeddings.")
    freeze_layers: int = argument(0, "Model", "Do not train the embeddings and this many lowest layers.", least=0)
    reinitialize_layers: int = argument(0, "Model", "Train this many top layers from random weights.", least=0)
    lora: LoRA | None = argument(  # noqa: RUF009 - a field
        None,
        "Model",
        "Train adapters and head instead of the encoder: rank=8,alpha=16,layers=query+value; further dropout=0.1, "
        "dora=yes, merge=no (docs/scale.md).",
        metavar="NAME=VALUE,…",
    )
    adversarial: str | None = argument(
        None, "Optimization", "Adversarial training: fgm changes embeddings, awp changes weights."
    )
    adversarial_size: float | None = argument(
        None, "Optimization", "Size of the adversarial change.  [default: 1 for fgm, 0.001 for awp]"
    )
    compute_dtype: str = argument(
        "float32", "Memory", "Number type of the encoder's computation: float32, bfloat16, float16."
    )
    checkpoint_layers: bool = argument(
        False, "Memory", "Compute each layer again in the backward pass: less memory, more time."
    )
    compiled: bool = argument(True, "Memory", "Compile the training step: faster, after a slow first step.")
    on_nonfinite: str = argument(
        "stop", "Optimization", "What to do at a loss that is not finite: stop, or skip the batch."
    )
    metric: str | None = argument(
        None, "Optimization", "Metric to optimize, such as auc, f1, rmse.  [default: that of the task]"
    )
    evaluations: int = argument(1, "Optimization", "Number of evaluations per epoch, evenly spaced.", least=1)
    patience: int | None = argument(
        None, "Optimization", "Stop after this many evaluations without an improvement.", least=1
    )
    keep: str = argument("best", "Optimization", "Weights of each fold to keep: best (by the metric), or last.")
    calibrate: bool = argument(
        True, "Optimization", "Fit temperature, thresholds and intervals on the held-out rows of each fold."
    )
    folds: int = argument(5, "Folds", "Number of folds; 1: train once, with one held-out part.", least=1)
    fold_kind: str | None = argument(
        None,
        "Folds",
        "plain, stratified, multilabel_stratified, binned, group, forward.  [default: depends on the task]",
    )
    valid_size: float | None = argument(
        None, "Folds", "With --folds 1: rows to hold out, as a share (below 1) or a number."
    )
    fold_seed: int = argument(0, "Folds", "Random seed of the folds.", least=0)
    seeds: tuple[int, ...] = argument(
        (0,),
        "Folds",
        "Random seed of a model; with several, each fold trains one model per seed and averages their predictions.",
        flag="seed",
    )
    evaluation_batch_size: int = argument(64, "Memory", "Rows in a batch of evaluation or prediction.", least=1)
    threads: int | None = argument(
        None,
        "Run",
        "Threads of each model's training, on a CPU; with the same number, a run has the same bytes.  [default: all "
        "that the process may use, divided among --workers]",
        least=1,
        most=64,
    )
    save_every: int | None = argument(
        None, "Run", "Save the state of the training after this many batches.  [default: every few minutes]", least=1
    )

    def __post_init__(self) -> None:
        """Refuse what cannot be: see `ConfigurationError`."""
        object.__setattr__(self, "seeds", _seeds(self.seeds))
        if self.lora is not None:
            object.__setattr__(self, "lora", LoRA.make(self.lora))
        for setting in dataclasses.fields(self):
            _check(setting, getattr(self, setting.name))
        choices = {
            "schedule": tuple(SHAPES),
            "adversarial": (None, *ADVERSARIAL),
            "keep": ("best", "last"),
            "on_nonfinite": ("stop", "skip"),
        }
        for name, allowed in choices.items():
            if getattr(self, name) not in allowed:
                known = ", ".join(str(choice) for choice in allowed if choice is not None)
                raise ConfigurationError(f"{name} {getattr(self, name)!r} is unknown; known: {known}")
        if self.adversarial_size is not None and self.adversarial is None:
            raise ConfigurationError("adversarial_size goes with adversarial; fix: adversarial='fgm' or 'awp'")
        if self.adversarial == "fgm" and (self.freeze_embeddings or self.freeze_layers):
            raise ConfigurationError(
                "adversarial 'fgm' moves the word embeddings, which are frozen; fix: train them, or adversarial='awp'"
            )
        if self.lora is not None and self.adversarial == "fgm":
            raise ConfigurationError(
                "adversarial 'fgm' moves the word embeddings, which are frozen below adapters; fix: adversarial='awp'"
            )
        if self.lora is not None and self.reinitialize_layers:
            raise ConfigurationError(
                "reinitialize_layers would freeze random weights below adapters; fix: leave it out, or lora"
            )
        if self.valid_size is not None and self.folds != 1:
            raise ConfigurationError(f"valid_size goes with folds=1, not with {self.folds} folds; fix: leave one out")
        # These refuse wrong values: do it here, before a run begins.
        self.step_settings()
        Schedule(1, self.schedule, 0, self.schedule_end, self.schedule_power)

    @classmethod
    def make(cls, settings: Mapping[str, Any]) -> Self:
        """Return the configuration with these settings, such as those in a run's `run.json`.

        Raises:
            ConfigurationError: a setting does not exist; the message gives the nearest names.
        """
        known = {setting.name for setting in dataclasses.fields(cls)}
        for name in settings:
            if name not in known:
                raise ConfigurationError(str(unknown_setting(name, known)))
        return cls(**settings)

    def to_dict(self) -> dict[str, Any]:
        """Return the settings as JSON values; `make` reads them."""
        return {**dataclasses.asdict(self), "seeds": list(self.seeds)}

    def step_settings(self) -> StepSettings:
        """Return the settings of `TrainStep`."""
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
    numbers = (seeds,) if isinstance(seeds, int) and not isinstance(seeds, bool) else tuple(seeds)
    whole = all(isinstance(seed, int) and not isinstance(seed, bool) and 0 <= seed < 2**31 for seed in numbers)
    if not numbers or not whole or len(set(numbers)) < len(numbers):
        raise ConfigurationError(f"seeds must be different whole numbers from 0 on, not {seeds!r}")
    return numbers


def _check(setting: dataclasses.Field[Any], value: Any) -> None:
    """Refuse a value that has not the type of the setting's annotation, or lies outside its limits."""
    kind, _, optional = str(setting.type).partition(" | ")
    if kind in ("tuple[int, ...]", "LoRA") or (value is None and optional):
        return
    wanted = {"int": "a whole number", "float": "a number", "str": "a word", "bool": "true or false"}[kind]
    fits = {
        "int": isinstance(value, int) and not isinstance(value, bool),
        "float": isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value),
        "str": isinstance(value, str),
        "bool": isinstance(value, bool),
    }[kind]
    least, most = setting.metadata["least"], setting.metadata["most"]
    if fits and (least is None or value >= least) and (most is None or value <= most):
        return
    limits = (f" from {least}" if least is not None else "") + (f" to {most}" if most is not None else "")
    raise ConfigurationError(f"{setting.name} must be {wanted}{limits}, not {value!r}")
