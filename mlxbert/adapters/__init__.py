"""Adapters: LoRA and DoRA on the linear layers of an encoder, also of a quantized one."""

from mlxbert.adapters.linear import AdaptedLinear as AdaptedLinear
from mlxbert.adapters.linear import adapted as adapted
from mlxbert.adapters.linear import add_adapters as add_adapters
from mlxbert.adapters.linear import is_adapter as is_adapter
from mlxbert.adapters.linear import linear_paths as linear_paths
from mlxbert.adapters.linear import merge_adapters as merge_adapters
from mlxbert.adapters.linear import notes_on as notes_on
from mlxbert.adapters.linear import put_adapters as put_adapters
from mlxbert.adapters.settings import AdapterError as AdapterError
from mlxbert.adapters.settings import AdapterWarning as AdapterWarning
from mlxbert.adapters.settings import LoRA as LoRA
