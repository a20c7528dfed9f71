"""The public names of quantlora. Plugins import these and nothing else."""

from .adapters.adapter_modules import lora_layers as lora_layers
from .adapters.disabling import (
    adapters_disabled as adapters_disabled,
    disable_adapters as disable_adapters,
    enable_adapters as enable_adapters,
)
from .adapters.mixed_batch import mixed_batch as mixed_batch
from .adapters.state import known_adapter as known_adapter
from .adapters.switch import (
    active_adapters as active_adapters,
    delete_adapter as delete_adapter,
    rename_adapter as rename_adapter,
    set_adapter as set_adapter,
)
from .checkpoint.diffusers_layout import (
    from_diffusers as from_diffusers,
    to_diffusers as to_diffusers,
)
from .checkpoint.hot_swap import hot_swap as hot_swap, prepare_hot_swap as prepare_hot_swap
from .checkpoint.plain_adapter import (
    Factors as Factors,
    PlainAdapter as PlainAdapter,
    plain_adapter as plain_adapter,
)
from .checkpoint.save import save_adapter as save_adapter
from .checkpoint.serving import (
    Effect as Effect,
    Remedy as Remedy,
    ServingReason as ServingReason,
    ServingVerdict as ServingVerdict,
    check_serving as check_serving,
)
from .checkpoint.vllm import check_vllm as check_vllm
from .checks import Check as Check, Note as Note, Status as Status, Verdict as Verdict
from .combining.combination import add_weighted_adapter as add_weighted_adapter
from .config.lora_config import LoraConfig as LoraConfig
from .config.patterns import (
    by_pattern as by_pattern,
    unmatched_patterns as unmatched_patterns,
)
from .discovery.registration import (
    best_quantizer as best_quantizer,
    forget_plugins as forget_plugins,
    registry as registry,
)
from .distributed.check import check_distributed as check_distributed
from .distributed.findings import (
    DistributedReport as DistributedReport,
    Finding as Finding,
)
from .env.machine import cpu_flags as cpu_flags
from .env.shown_report import EnvReport as EnvReport, env_report as env_report
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
    NonFiniteError as NonFiniteError,
    PluginWarning as PluginWarning,
    QuantloraError as QuantloraError,
    TargetError as TargetError,
)
from .experts.inputs import (
    expert_inputs as expert_inputs,
    has_fused_experts as has_fused_experts,
)
from .exporting.export import ExportReport as ExportReport, export_merged as export_merged
from .files.atomic_file import write_file as write_file
from .files.atomic_set import write_set as write_set
from .files.reference import (
    WeightFiles as WeightFiles,
    folder_or_download as folder_or_download,
    open_reference as open_reference,
)
from .files.safetensors_file import (
    TENSOR_TYPES as TENSOR_TYPES,
    TensorFile as TensorFile,
    write_tensors as write_tensors,
)
from .files.shards import shard_files as shard_files
from .files.staging import new_folder as new_folder
from .files.stream_tensors import TensorSource as TensorSource
from .formats.affine import (
    AffineWeight as AffineWeight,
    pool as pool,
    spread as spread,
    spread_blocks as spread_blocks,
)
from .formats.affine_rounding import fit_affine as fit_affine, refit_affine as refit_affine
from .formats.bit_packing import pack_bits as pack_bits, unpack_bits as unpack_bits
from .formats.expert_stack import ExpertStack as ExpertStack
from .formats.finite import check_packable as check_packable
from .formats.inference_copy import InferenceCopy as InferenceCopy, dense_copy as dense_copy
from .formats.inference_memory import (
    InferenceMemory as InferenceMemory,
    free_inference_copies as free_inference_copies,
    inference_memory as inference_memory,
)
from .formats.int4_copy import grid_copy as grid_copy
from .formats.layer_files import PackedState as PackedState
from .formats.layouts import linear_from as linear_from
from .formats.look_up import look_up as look_up
from .formats.model_loader import (
    LoadRequest as LoadRequest,
    ModelLoader as ModelLoader,
    StoredModel as StoredModel,
    StoredTensor as StoredTensor,
)
from .formats.packed_module import PackedModule as PackedModule
from .formats.quantize_options import checked_options as checked_options
from .formats.quantizer import Quantizer as Quantizer
from .hardware import multiplies_bfloat16 as multiplies_bfloat16
from .hookspecs import hookimpl as hookimpl
from .initializers.initializer import InitContext as InitContext, Initializer as Initializer
from .inspection.live_bytes import LiveBytes as LiveBytes
from .inspection.memory import (
    MemoryUse as MemoryUse,
    gradient_bytes as gradient_bytes,
    memory_of as memory_of,
    optimizer_bytes as optimizer_bytes,
)
from .inspection.memory_estimate import memory_estimate as memory_estimate
from .layers.autograd import low_rank as low_rank
from .layers.layer import LoraLayer as LoraLayer
from .layers.linear import LoraLinear as LoraLinear
from .layers.product_dtype import adapter_products as adapter_products
from .loading.expert_stacks import set_expert_stack as set_expert_stack
from .loading.load import load as load
from .loading.packed_checkpoint import save_packed as save_packed
from .loading.pretrained import pretrained as pretrained, resolve_model as resolve_model
from .merging.merge import merge as merge, unmerge as unmerge
from .requirements import (
    AllOf as AllOf,
    AnyOf as AnyOf,
    Availability as Availability,
    Requirement as Requirement,
)
from .training.causal_lm_loss import causal_lm_loss as causal_lm_loss
from .training.prepare import prepare as prepare
from .training.reference_model import reference_model as reference_model
from .training.stop_on_nan import StopOnNaN as StopOnNaN
from .transformers_models import (
    dtype_argument as dtype_argument,
    in_this_model as in_this_model,
)
from .units import format_size as format_size
from .wrapped_model import (
    load_adapter as load_adapter,
    merge_and_unload as merge_and_unload,
    unload as unload,
    wrap as wrap,
)
from .wrapping.bases import as_linear as as_linear, reference_for as reference_for
from .wrapping.explain import explain as explain
from .wrapping.explanation import Explanation as Explanation, LayerRow as LayerRow
from .wrapping.quantize import quantize as quantize

__version__: str
