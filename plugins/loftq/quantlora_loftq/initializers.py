"""``init_lora_weights="loftq"`` and ``"qera"``: A and B that make up for quantization."""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from quantlora import (
    BackendError,
    ConfigError,
    InitContext,
    Initializer,
    LoraConfig,
    LoraLayer,
    Quantizer,
    linear_from,
    registry,
)
from quantlora_loftq.loop import Problem, Solution, solve
from quantlora_loftq.options import LoftQConfig, check_bits, loftq_options

#: The core's name for layers that are not packed.
_FLOAT = "float"
#: Channels that the calibration hardly saw count as if they had this share of the largest.
_FLOOR = 1e-3
#: Below it ``1 / scaling`` leaves no room in float32.
_LEAST_SCALING = 1e-12


class LoftQ(Initializer):
    """The rank-r part of what quantization loses (arXiv:2310.08659), on any weight format.

    A layer quantized by this call is quantized anew in each iteration; one that was packed
    before keeps its codes and gets the best A and B for them.
    """

    name: ClassVar[str] = "loftq"
    changes_base: ClassVar[bool] = True
    takes_experts: ClassVar[bool] = True

    def check(self, config: LoraConfig) -> None:
        loftq_options(config.loftq_config, self.name)

    def quantize_options(self, config: LoraConfig, quantizer: Quantizer) -> Mapping[str, Any]:
        bits = loftq_options(config.loftq_config, self.name).loftq_bits
        if bits is None:
            return {}
        check_bits(bits, quantizer.bits, quantizer.name)
        return {"bits": bits} if len(quantizer.bits) > 1 else {}

    def initialize(self, layer: LoraLayer, context: InitContext) -> None:
        options = loftq_options(context.config.loftq_config, self.name)
        check_scaling(layer, context)
        weight = reference_weight(layer, context)
        metric = self.metric(context.path, options, weight)
        solution = fit_layer(layer, context, weight, options, metric)
        set_factors(layer, context, *solution.factors(layer.scaling[context.adapter]))
        if context.fresh:
            _set_base(layer, solution.base)
        if context.fresh and options.fake:
            _make_dense(layer, context)

    def metric(self, path: str, options: LoftQConfig, weight: Tensor) -> Tensor | None:
        """The weight ``(in,)`` of each input channel's error; None for all the same."""
        return None


class Qera(LoftQ):
    """As LoftQ, in the metric of the layer's inputs: the error of the output is what counts.

    QERA: Zhang et al. 2024, arXiv:2410.06040, theorem 2 (the diagonal form): the SVD is taken
    of ``(W - Q) · diag(√E[x²])``.
    """

    name: ClassVar[str] = "qera"

    def metric(self, path: str, options: LoftQConfig, weight: Tensor) -> Tensor | None:
        squares = (options.calibration or {}).get(path)
        if squares is None:
            raise ConfigError(
                f"{path}: qera needs the mean square of the layer's inputs. Give loftq_config="
                f"LoftQConfig(calibration=quantlora_loftq.input_mean_squares(model, batches)) "
                f"of the float model."
            )
        if squares.shape != weight.shape[1:]:
            raise ConfigError(
                f"{path}: calibration has {tuple(squares.shape)} channels, the layer "
                f"{weight.shape[1]} inputs: it was collected on another model."
            )
        root = squares.to(weight).sqrt()
        return root.clamp(min=float(root.max()) * _FLOOR or 1.0)


def fit_layer(
    layer: LoraLayer,
    context: InitContext,
    weight: Tensor,
    options: LoftQConfig,
    metric: Tensor | None = None,
) -> Solution:
    """`solve` for a LoRA layer; its base is read, never changed."""
    base, quantizer = layer.base_layer, layer.quantizer

    def pack(target: Tensor) -> nn.Module:
        return quantizer.quantize(linear_from(target, quantizer.bias(base)), like=base)

    can_repack = context.fresh and quantizer.can_quantize
    problem = Problem(
        weight,
        quantizer.dequantize,
        pack if can_repack else None,
        layer.r[context.adapter],
        options.method,
        seed_for(context.path, options.seed),
        metric,
    )
    return solve(problem, base, options.loftq_iter)


def check_scaling(layer: LoraLayer, context: InitContext) -> None:
    """A and B are to be ``product / scaling``: refuse a scaling that cannot be divided by."""
    scaling = layer.scaling[context.adapter]
    if abs(scaling) < _LEAST_SCALING:
        raise ConfigError(
            f"{context.path}: init_lora_weights={context.config.init_lora_weights!r} takes A and B "
            f"from the weight and divides them by lora_alpha / r, which is {scaling:g} here. Give "
            f"a lora_alpha (and alpha_pattern) other than 0; r is usual."
        )


def reference_weight(layer: LoraLayer, context: InitContext) -> Tensor:
    """The float weight from before quantization, on the layer's device, checked."""
    if context.reference is None:
        raise BackendError(_no_reference(layer, context.path))
    device = layer.quantizer.device(layer.base_layer)
    dtype = factor_A(layer, context).dtype
    weight = context.reference().detach().to(device, dtype)
    shape = (layer.out_features, layer.in_features)
    if weight.shape != shape:
        raise ConfigError(
            f"{context.path}: the reference weight has shape {tuple(weight.shape)}, the layer "
            f"{shape}: it belongs to another model."
        )
    if not torch.isfinite(weight).all():
        raise ConfigError(f"{context.path}: the reference weight holds NaN or infinite values.")
    return weight


def _no_reference(layer: LoraLayer, path: str) -> str:
    packers = [q.name for q in registry().quantizers.values() if q.can_quantize and q.bits]
    if layer.quantizer.name == _FLOAT:
        why = "the layer is float, and there is no quantization to make up for"
        todo = f"Give a backend that quantizes: {', '.join(packers)}."
    else:
        why = f"the layer is in format {layer.quantizer.name!r} already"
        todo = "Give wrap(..., reference=<folder or hub id of the float model>)."
    return f"{path}: {why}. {todo}"


def factor_A(layer: LoraLayer, context: InitContext) -> nn.Parameter:  # noqa: N802
    """The adapter's A; an error for layers that have none of its kind."""
    tensors = layer.adapter_tensors(context.adapter)
    if "lora_A.weight" not in tensors:
        raise ConfigError(
            f"{context.path}: init_lora_weights={context.config.init_lora_weights!r} is for linear "
            f"layers, and this one has {', '.join(tensors)}. Leave it out with exclude_modules."
        )
    return tensors["lora_A.weight"]


def set_factors(layer: LoraLayer, context: InitContext, A: Tensor, B: Tensor) -> None:
    """Copy A ``(r, in)`` and B ``(out, r)`` into the adapter."""
    factor_A(layer, context)
    tensors = layer.adapter_tensors(context.adapter)
    for name, value in (("lora_A.weight", A), ("lora_B.weight", B)):
        if tensors[name].shape != value.shape:
            raise ConfigError(
                f"{context.path}: init_lora_weights={context.config.init_lora_weights!r} needs "
                f"{name} of shape {tuple(value.shape)}, variant {layer.variant!r} has "
                f"{tuple(tensors[name].shape)}. Use it with LoRA or DoRA."
            )
        tensors[name].data.copy_(value)


def _set_base(layer: LoraLayer, base: nn.Module) -> None:
    if base is not layer.base_layer:
        layer.quantizer.prepare(base, layer.path)
        layer.base_layer = base.train(layer.base_layer.training)


def _make_dense(layer: LoraLayer, context: InitContext) -> None:
    """The packed base as a float layer, in the dtype of the weight it was packed from."""
    assert context.reference is not None
    weight = layer.dequantize().to(context.reference().dtype)
    linear = linear_from(weight, layer.bias).train(layer.base_layer.training)
    layer.base_layer = layer.stored_as_before(linear)
    layer.quantizer = registry().quantizers[_FLOAT]


def seed_for(path: str, seed: int) -> int:
    """A layer's own seed: whoever works on it, in whatever order, finds the same result."""
    return zlib.crc32(f"{seed}:{path}".encode())
