"""`BertWithHead`: an encoder, a pooling and a task head as one model that trains, saves and loads."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any, Self

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from heads.base import Head
from heads.errors import HeadError
from heads.head_registry import head_from_settings
from mlxbert.adapters.files import (
    ADAPTER_FILE,
    SETTINGS_FILE,
    Base,
    adapter_json,
    adapter_tensors,
    merged_tensors,
)
from mlxbert.checkpoint import (
    CheckpointError,
    base_of,
    encoder_layout,
    is_license_file,
    load_core,
    read_config,
    resolve,
)
from mlxbert.errors import MLXBertError, first_ten
from mlxbert.files.output_directory import OutputDirectory
from mlxbert.files.safetensors import PlannedTensor, read_safetensors
from mlxbert.model_arrays import (
    encoder_tensors,
    mask_of,
    named_parameters,
    parameter_count,
    planned_tensors,
    tensor_problems,
    with_true_dtype,
)
from mlxbert.models.base import Encoder
from mlxbert.pooling import PoolingError, PoolingModule, WeightedLayerPooling, make_pooling, pooling_settings
from mlxbert.tokenization.files import TOKENIZER_FILES

HEADS_FILE = "heads.safetensors"


class BertWithHead(nn.Module):
    """Token ids to logits; the parameters are under `core`, `pooling` and `head`.

    Attributes:
        core: the encoder.
        pooling: from (B, L, D) to (B, D).
        head: from (B, D) to logits.
        source: the converted directory that the encoder came from; `save` takes config and tokenizer from it.
    """

    def __init__(
        self,
        core: Encoder,
        head: Head,
        pooling: str | Mapping[str, Any] | PoolingModule = "mean",
        *,
        source: Path | None = None,
    ):
        """Join the three.

        Args:
            core: the encoder.
            head: its `hidden_size` is the encoder's.
            pooling: a name of `mlxbert.pooling.CHOICES`, or a module of `mlxbert.pooling`.
            source: the converted directory of the encoder, where it came from one.

        Raises:
            MLXBertError: the sizes differ, or this encoder cannot be pooled so.
        """
        super().__init__()
        config = core.config
        if head.hidden_size != config.hidden_size:
            raise MLXBertError(
                f"the head takes {head.hidden_size} features and the encoder gives {config.hidden_size}; "
                f"fix: hidden_size={config.hidden_size}"
            )
        self.core = core
        self.pooling = make_pooling(pooling, config.hidden_size, core.num_layers)
        if pooling_settings(self.pooling)["name"] == "pooler" and not core.has_pooler:
            raise PoolingError("pooling 'pooler': this checkpoint has no pooler; fix: use 'cls' or 'mean'")
        self.head = head
        self.source = source

    @classmethod
    def from_pretrained(
        cls,
        path_or_hub_id: str | Path,
        head: Head,
        pooling: str | Mapping[str, Any] | PoolingModule = "mean",
        *,
        revision: str | None = None,
        dtype: mx.Dtype | None = None,
        dequantize: bool | None = None,
    ) -> Self:
        """Put a new head on a converted encoder, in evaluation mode; arguments as for `mlxbert.load`."""
        directory = resolve(path_or_hub_id, revision)
        model = cls(load_core(directory, dtype=dtype, dequantize=dequantize), head, pooling, source=directory)
        model.eval()
        return model

    def features(
        self,
        input_ids: Any,
        attention_mask: Any = None,
        token_type_ids: Any = None,
        *,
        inputs_embeds: mx.array | None = None,
    ) -> mx.array:
        """Return the pooled (B, D) vectors, the input of the head; arguments as for the encoder."""
        mask = None if attention_mask is None else mask_of("attention_mask", attention_mask)
        every_layer = isinstance(self.pooling, WeightedLayerPooling)
        output = self.core(
            input_ids, mask, token_type_ids, inputs_embeds=inputs_embeds, output_hidden_states=every_layer
        )
        return self.pooling(output, mask)

    def __call__(
        self,
        input_ids: Any,
        attention_mask: Any = None,
        token_type_ids: Any = None,
        *,
        inputs_embeds: mx.array | None = None,
        **extra: mx.array,
    ) -> mx.array:
        """Return the logits (B, outputs), float32.

        Args:
            input_ids: (B, L).
            attention_mask: (B, L), 1 for real tokens.
            token_type_ids: (B, L).
            inputs_embeds: (B, L, E), instead of the rows of the word embeddings; `input_ids` then only mark padding.
            extra: what the head takes beside the text (`Head.extra_inputs`), such as a history; first axis B.

        Raises:
            HeadError: an input that this head does not take.
        """
        unknown = sorted(set(extra) - set(self.head.extra_inputs))
        if unknown:
            takes = ", ".join(self.head.extra_inputs) or "none"
            raise HeadError(f"{self.head.title}: input {unknown[0]!r} is unknown; extra inputs of this head: {takes}")
        features = self.features(input_ids, attention_mask, token_type_ids, inputs_embeds=inputs_embeds)
        return self.head(features, **extra)

    def loss(self, logits: mx.array, targets: Any, *, rows: Any = None) -> mx.array:
        """Return the head's loss; `targets` come from `head.encode_targets`. See `heads.base.Head.loss`."""
        return self.head.loss(logits, targets, rows=rows)

    def predict(self, logits: Any) -> np.ndarray[Any, Any]:
        """Return probabilities, or values in the user's units. See `heads.base.Head.predict`."""
        return self.head.predict(logits)

    def sample(
        self,
        input_ids: Any,
        attention_mask: Any = None,
        token_type_ids: Any = None,
        *,
        samples: int = 30,
        **extra: mx.array,
    ) -> mx.array:
        """Return logits (samples, B, outputs) of passes with dropout on: Monte-Carlo dropout.

        Gal and Ghahramani 2016, https://arxiv.org/abs/1506.02142; `RegressionHead.mc_interval` uses them. Each pass
        draws one mask, even if training averages several.
        """
        with _one_dropout_mask(self, self.head):
            passes = []
            for _ in range(samples):
                passes.append(self(input_ids, attention_mask, token_type_ids, **extra))
                mx.eval(passes[-1])  # one pass after the other: not the activations of all at once
            return mx.stack(passes)

    @property
    def merges(self) -> bool:
        """Whether it has adapters that saving merges into the weights."""
        lora = self.core.lora
        return lora is not None and (self.core.packed is None if lora.merge is None else lora.merge)

    def save(self, directory: str | Path, *, overwrite: bool = False) -> Path:
        """Write this model as a converted directory, complete or not at all, and return its real path.

        The encoder is in `model.safetensors` (other tools load it as before), `head.*` and `pooling.*` are in
        `heads.safetensors`, their settings in `config.json` under "mlxbert", "head". Each tensor keeps its dtype, a
        quantized encoder its packed bytes. The tokenizer files are copied from `source`.

        Adapters are merged into the weights; those of a quantized encoder, or with `merge=no` in their settings, are
        saved as `adapter.safetensors` and `adapter.json` in place of the encoder, which is named by its digest.

        Raises:
            WriteError: the directory exists and `overwrite` is not given, or cannot be written.
            CheckpointError: `source` is gone.
            ChangedWeightsError: a quantized encoder has other weights than it was loaded with.
        """
        lora, adapter = self.core.lora, None
        encoder: list[PlannedTensor] = []
        if lora is not None and not self.merges:
            adapter = adapter_json(lora, Base(None, None) if self.source is None else base_of(self.source))
        else:
            encoder = encoder_tensors(self.core) if lora is None else merged_tensors(self.core)
        rest = planned_tensors(self.head, "head.") + planned_tensors(self.pooling, "pooling.")
        config = self._config()
        with OutputDirectory(Path(directory), overwrite=overwrite) as output:
            if adapter is not None:
                output.write_safetensors(ADAPTER_FILE, adapter_tensors(self.core))
                output.write_json(SETTINGS_FILE, adapter)
            else:
                output.write_model(encoder, parameters=parameter_count(self.core))
            if rest:
                output.write_safetensors(HEADS_FILE, rest)
            beside = [] if self.source is None else [file for file in self.source.iterdir() if file.is_file()]
            for file in beside:  # the source's license also covers a model trained from it
                if file.name in TOKENIZER_FILES or is_license_file(file.name):
                    output.copy(file.name, file)
            return output.commit(config)

    @classmethod
    def load(
        cls,
        path_or_hub_id: str | Path,
        revision: str | None = None,
        *,
        dtype: mx.Dtype | None = None,
        dequantize: bool | None = None,
        base: str | Path | None = None,
    ) -> Self:
        """Load a model that `save` wrote, in evaluation mode; its tokenizer is `mlxbert.load(path)[1]`.

        Args:
            path_or_hub_id: a directory, or the id of a repository on the Hub.
            revision: a branch, tag or commit of that repository.
            dtype: dtype of the encoder's computation, as for `mlxbert.load`; head and pooling keep their stored dtype.
            dequantize: of a quantized encoder, as for `mlxbert.load`.
            base: the base of saved adapters, as for `mlxbert.load`.

        Raises:
            CheckpointError: it has no head of this kind, or is damaged.
            AdapterError: the base of saved adapters is not there, or is another one.
        """
        directory = resolve(path_or_hub_id, revision)
        config = read_config(directory)
        settings = config.get("mlxbert", {}).get("head")
        if not isinstance(settings, dict):
            raise CheckpointError(
                f"{directory}: a converted encoder without a task head; fix: BertWithHead.from_pretrained(path, head)"
            )
        try:
            head = head_from_settings(settings)
            core = load_core(directory, config=config, dtype=dtype, dequantize=dequantize, base=base)
            model = cls(core, head, settings.get("pooling") or {}, source=directory)
        except (HeadError, PoolingError) as error:
            raise CheckpointError(f"{directory}: config.json, mlxbert.head: {error}") from error
        model._load_rest(directory)
        model.eval()
        return model

    def _config(self) -> dict[str, Any]:
        """Return the source's `config.json`, with the dtype of these tensors and the head's settings."""
        declared = self.core.architecture
        if self.source is not None:
            config = encoder_layout(read_config(self.source, other_tools=True))
        else:
            names = {"model_type": declared.model_type, "architectures": [declared.encoder_class]}
            keys = declared.config.ALIASES
            fields = {keys.get(name, name): value for name, value in asdict(self.core.config).items()}
            config = declared.written_config({**names, **fields})
        if not isinstance(config.get("mlxbert"), dict):  # written by another tool; its class may have a head
            config["mlxbert"] = {"format_version": 1, "source": None, "revision": None}
            config["mlxbert"]["original_architectures"] = config.get("architectures")
            config["architectures"] = [declared.encoder_class]
        config = with_true_dtype(config, self.core)
        if self.core.packed is not None:
            config["quantization"] = config["quantization_config"] = dict(self.core.packed.block)
        settings = {**self.head.settings(), "pooling": pooling_settings(self.pooling)}
        # The scores of a trained source do not belong to these weights.
        block = {name: value for name, value in config["mlxbert"].items() if name != "trained"}
        config["mlxbert"] = {**block, "head": settings}
        return config

    def _load_rest(self, directory: Path) -> None:
        """Fill head and pooling from `heads.safetensors`: every tensor, and no other."""
        expected = {
            f"{prefix}.{name}": array.shape
            for prefix in ("head", "pooling")
            for name, array in named_parameters(self[prefix]).items()
        }
        file = directory / HEADS_FILE
        tensors, _ = read_safetensors(file, CheckpointError, fix="fix: save or download again") or ({}, {})
        if problems := tensor_problems(tensors, expected):
            raise CheckpointError(
                f"{file}: not the tensors that config.json calls for; fix: save or download again\n"
                + first_ten(problems)
            )
        self.load_weights(list(tensors.items()), strict=False)
        mx.eval(self.parameters())


@contextmanager
def _one_dropout_mask(model: nn.Module, head: Head) -> Iterator[None]:
    """Turn dropout on inside; `head` draws one mask a pass even if it averages several. Restore both afterwards."""
    modes = [(module, module.training) for module in model.modules()]
    samples = head.dropout_samples
    model.train()
    head.dropout_samples = 1
    try:
        yield
    finally:
        head.dropout_samples = samples
        for module, training in modes:
            module._training = training
