"""What other tools call our settings: transformers, Keras, scikit-learn, Lightning, Kaggle notebooks."""

from __future__ import annotations

from collections.abc import Collection

from heads.errors import HeadError, unknown_name

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
