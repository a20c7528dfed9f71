"""`prepare`: a half-precision or quantized model made ready for training, on every backend.

In place of PEFT's ``prepare_model_for_kbit_training``, which casts every half-precision parameter
to float32, embeddings and output layer included. What gains from float32 is the norms; here they
alone are cast by default, and each hands on its result in the model's own dtype.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from quantlora.adapters.adapted_model import AdaptedModel
from quantlora.adapters.disabling import trainable_tensors
from quantlora.discovery.registration import registry
from quantlora.errors import ConfigError

UPCASTS = ("norms", "all", "none")
_HALF = (torch.float16, torch.bfloat16)


@dataclass(frozen=True)
class PrepareReport:
    """What `prepare` did.

    Args:
        cast: the parameters that are float32 now, by path, with the bytes each one cost.
        checkpointing: whether activations are computed again in backward.
    """

    cast: dict[str, int]
    checkpointing: bool

    @property
    def extra_bytes(self) -> int:
        return sum(self.cast.values())

    def __str__(self) -> str:
        again = "on" if self.checkpointing else "off"
        return (
            f"{len(self.cast)} parameters cast to float32, {self.extra_bytes:,} bytes more; "
            f"gradient checkpointing {again}."
        )


def prepare(
    model: nn.Module,
    upcast: str = "norms",
    *,
    gradient_checkpointing: bool = True,
    gradient_checkpointing_kwargs: dict[str, Any] | None = None,
) -> PrepareReport:
    """Freeze the base, cast what needs float32, turn on gradient checkpointing. Idempotent.

    Args:
        model: before or after `wrap`; adapters stay trainable.
        upcast: ``"norms"``; ``"all"``: every half-precision parameter that is not a packed
            weight, as PEFT does; ``"none"``.
        gradient_checkpointing: for models that can (Transformers'); non-reentrant by default.

    Raises:
        ConfigError: ``upcast`` is none of these.
    """
    if upcast not in UPCASTS:
        raise ConfigError(f"upcast must be one of {', '.join(UPCASTS)}, got {upcast!r}.")
    for parameter in _base_parameters(model):
        parameter.requires_grad_(False)
    cast = dict(_upcast(model, upcast))
    kwargs = gradient_checkpointing_kwargs or {"use_reentrant": False}
    return PrepareReport(cast, gradient_checkpointing and _checkpoint(model, kwargs))


def _base_parameters(model: nn.Module) -> Iterator[nn.Parameter]:
    """All but what adapters train: their factors, modules in full and biases."""
    adapted = AdaptedModel(model)
    names = {name for module in adapted.adapter_modules.values() for name in module.adapters}
    trained = {id(tensor) for tensor in trainable_tensors(adapted, names | {*adapted.state.biases})}
    return (parameter for parameter in model.parameters() if id(parameter) not in trained)


def _upcast(model: nn.Module, upcast: str) -> Iterator[tuple[str, int]]:
    """Cast, and give the path and the extra bytes of each parameter."""
    for path, module in model.named_modules():
        norm = _is_norm(module)
        if upcast == "none" or (upcast == "norms" and not norm) or registry().packed_format(module):
            continue
        for name, parameter in module.named_parameters(path, recurse=False):
            if parameter.dtype not in _HALF:
                continue
            if upcast == "norms":
                _compute_in_float32(module, parameter.dtype)
            yield name, parameter.numel() * (4 - parameter.element_size())
            parameter.data = parameter.data.float()


def _is_norm(module: nn.Module) -> bool:
    return "norm" in type(module).__name__.lower() and not any(True for _ in module.children())


def _compute_in_float32(module: nn.Module, dtype: torch.dtype) -> None:
    """Float32 within the module, ``dtype`` outside: whoever comes next sees what it saw before."""
    if getattr(module, "quantlora_upcast", False):
        return
    module.quantlora_upcast = True  # type: ignore[assignment]
    module.register_forward_pre_hook(_float_inputs)
    module.register_forward_hook(partial(_outputs_as, dtype=dtype))


def _float_inputs(module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
    return tuple(a.float() if isinstance(a, Tensor) and a.dtype in _HALF else a for a in args)


def _outputs_as(module: nn.Module, args: Any, output: Any, *, dtype: torch.dtype) -> Any:
    return output.to(dtype) if isinstance(output, Tensor) else output


def _checkpoint(model: nn.Module, kwargs: dict[str, Any]) -> bool:
    """Turn on gradient checkpointing where the model can; True if it did."""
    enable: Any = getattr(model, "gradient_checkpointing_enable", None)
    if enable is None or not getattr(model, "supports_gradient_checkpointing", True):
        return False
    enable(gradient_checkpointing_kwargs=kwargs)
    if kwargs.get("use_reentrant", True):
        # A reentrant checkpoint passes gradients only if an input wants one: embeddings are frozen.
        require: Any = getattr(model, "enable_input_require_grads", lambda: None)
        require()
    return True
