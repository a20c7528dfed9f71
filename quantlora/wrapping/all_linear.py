"""Which layers "all-linear" is about, and which it leaves out."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from quantlora.adapters.adapter_modules import embedding_ends
from quantlora.config.lora_config import LoraConfig
from quantlora.discovery.registration import registry
from quantlora.formats.expert_stack import ExpertStack
from quantlora.formats.float_quantizer import FloatQuantizer
from quantlora.formats.layouts import is_linear_kind
from quantlora.formats.quantizer import FLOAT
from quantlora.layers.layer import LoraLayer
from quantlora.layers.parameters import LoraParameters
from quantlora.layers.read_weight import is_plain
from quantlora.suggestions import some


def looks_linear(module: nn.Module) -> bool:
    """Linear by class, by a quantizer's word, or a leaf that has the attributes of one.

    The last makes a packed layer that nobody knows an error in `wrap`, not silently left out.
    """
    if isinstance(module, (LoraParameters, ExpertStack)) or not is_linear_kind(module):
        return False
    if isinstance(module, LoraLayer):
        return is_linear_kind(module.base_layer)
    if isinstance(module, nn.Linear):
        return not computes_otherwise(module)
    if registry().candidates(module):
        return True
    return _has_sizes(module) and not _holds_floats(module)


def _has_sizes(module: nn.Module) -> bool:
    leaf = not any(True for _ in module.children())
    return leaf and hasattr(module, "out_features") and hasattr(module, "in_features")


def _holds_floats(module: nn.Module) -> bool:
    weight: Any = getattr(module, "weight", None)
    sizes = (getattr(module, "out_features", None), getattr(module, "in_features", None))
    plain = type(weight) in (nn.Parameter, Tensor) and is_plain(weight)
    return plain and tuple(weight.shape) == sizes


def computes_otherwise(module: nn.Module) -> bool:
    """Whether a float linear layer does more than its product: a router, a clamp.

    It may be a subclass of `nn.Linear`, or a class of its own with the same weight (I-BERT's).
    """
    quantizer = registry().quantizers[FLOAT]
    if isinstance(quantizer, FloatQuantizer) and quantizer.is_other(module):
        return True
    alike = _has_sizes(module) and not isinstance(module, nn.Linear) and _holds_floats(module)
    return alike and is_linear_kind(module) and not registry().candidates(module)


def left_out(modules: Mapping[str, nn.Module]) -> str:
    """What to say of those of ``modules`` that "all-linear" leaves out; empty where it does not."""
    names = {
        path: type(module).__name__
        for path, module in modules.items()
        if computes_otherwise(module)
    }
    if not names:
        return ""
    kinds = ", ".join(dict.fromkeys(names.values()))
    return (
        f'"all-linear" leaves out {some(names)}: the forward of {kinds} does more than the product '
        f"of a linear layer, and an adapter would pass that by."
    )


def output_heads(model: nn.Module, config: LoraConfig) -> set[nn.Module]:
    """The output embeddings, or a classifier's head: what "all-linear" leaves out."""
    output = embedding_ends(model)[1]
    if output is not None:
        return {output}
    classifier = type(model).__name__.endswith("ForSequenceClassification")
    names = ("score", "classifier") if classifier or config.task_type == "SEQ_CLS" else ()
    return {head for name in names if (head := getattr(model, name, None)) is not None}
