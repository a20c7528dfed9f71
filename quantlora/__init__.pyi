"""The public names of quantlora. Plugins import these and nothing else."""

from .adapters import (
    active_adapters as active_adapters,
    adapters_disabled as adapters_disabled,
    delete_adapter as delete_adapter,
    disable_adapters as disable_adapters,
    enable_adapters as enable_adapters,
    rename_adapter as rename_adapter,
    set_adapter as set_adapter,
    unload as unload,
)
from .affine import AffineWeight as AffineWeight, pool as pool, spread as spread
from .bases import as_linear as as_linear, linear_from as linear_from
from .checkpoint.load import load_adapter as load_adapter
from .checkpoint.save import save_adapter as save_adapter
from .checkpoint.vllm import check_vllm as check_vllm
from .checks import Check as Check, Status as Status, Verdict as Verdict
from .combination import add_weighted_adapter as add_weighted_adapter
from .config import LoraConfig as LoraConfig
from .env.machine import cpu_flags as cpu_flags
from .errors import (
    AdapterError as AdapterError,
    AdapterFileError as AdapterFileError,
    AdapterWarning as AdapterWarning,
    BackendError as BackendError,
    ConfigError as ConfigError,
    FinetuneError as FinetuneError,
    LayerError as LayerError,
    MergeError as MergeError,
    MissingLibraryError as MissingLibraryError,
    PluginWarning as PluginWarning,
    QuantloraError as QuantloraError,
    TargetError as TargetError,
)
from .explaining import explain as explain
from .explanation import Explanation as Explanation, LayerRow as LayerRow
from .exporting import ExportReport as ExportReport, export_merged as export_merged
from .hookspecs import hookimpl as hookimpl
from .hot_swapping import hot_swap as hot_swap, prepare_hot_swap as prepare_hot_swap
from .initializer import InitContext as InitContext, Initializer as Initializer
from .layer import LoraLayer as LoraLayer
from .linear import LoraLinear as LoraLinear
from .merging import merge as merge, merge_and_unload as merge_and_unload, unmerge as unmerge
from .mixed_batch import mixed_batch as mixed_batch
from .preparing import prepare as prepare
from .quantizer import Quantizer as Quantizer
from .reference import (
    WeightFiles as WeightFiles,
    folder_or_download as folder_or_download,
    open_reference as open_reference,
)
from .registration import registry as registry
from .requirements import (
    AllOf as AllOf,
    AnyOf as AnyOf,
    Availability as Availability,
    Requirement as Requirement,
)
from .state import known_adapter as known_adapter, lora_layers as lora_layers
from .wrapping import wrap as wrap

__version__: str
