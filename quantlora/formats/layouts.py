"""How a float layer of another kind than `nn.Linear` stores its matrix ``(out, in)``.

`Conv1D` (GPT-2) has it transposed. An embedding is a linear layer over one-hot tokens: its matrix
is ``(embedding_dim, num_embeddings)``. A convolution is one over patches: its matrix is
``(out_channels, in_channels / groups · kernel elements)``.
"""

from __future__ import annotations

import sys
from abc import ABC, abstractmethod
from collections import OrderedDict
from typing import cast

import torch
from torch import Tensor, nn

from quantlora.formats.around import computing_hooks
from quantlora.formats.twin import twin

#: Kinds that are targeted by name only, never by "all-linear".
EMBEDDINGS = (nn.Embedding,)
CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)


class Layout(ABC):
    """One way to store a matrix."""

    @abstractmethod
    def types(self) -> tuple[type[nn.Module], ...]: ...

    @abstractmethod
    def matrix(self, weight: Tensor) -> Tensor:
        """The stored ``weight`` as ``(out, in)``; a view."""

    @abstractmethod
    def to_storage(self, matrix: Tensor, like: nn.Module) -> Tensor:
        """A matrix ``(out, in)`` as ``like`` stores it."""

    @abstractmethod
    def own_shape(self, layer: nn.Module) -> tuple[int, ...]:
        """The shape the stored weight must have, from the layer's attributes."""


class _Transposed(Layout):
    def types(self) -> tuple[type[nn.Module], ...]:
        return conv1d()

    def matrix(self, weight: Tensor) -> Tensor:
        return weight.t()

    def to_storage(self, matrix: Tensor, like: nn.Module) -> Tensor:
        return matrix.t().contiguous()  # files and Transformers' search for ties want it so

    def own_shape(self, layer: nn.Module) -> tuple[int, ...]:
        return cast("tuple[int, int]", (layer.nx, layer.nf))


class _Embedding(_Transposed):
    def types(self) -> tuple[type[nn.Module], ...]:
        return EMBEDDINGS

    def own_shape(self, layer: nn.Module) -> tuple[int, ...]:
        return cast("tuple[int, int]", (layer.num_embeddings, layer.embedding_dim))


class _Convolution(Layout):
    def types(self) -> tuple[type[nn.Module], ...]:
        return CONVOLUTIONS

    def matrix(self, weight: Tensor) -> Tensor:
        return weight.flatten(1)

    def to_storage(self, matrix: Tensor, like: nn.Module) -> Tensor:
        return matrix.reshape(self.own_shape(like))

    def own_shape(self, layer: nn.Module) -> tuple[int, ...]:
        assert isinstance(layer, CONVOLUTIONS)
        return (layer.out_channels, layer.in_channels // layer.groups, *layer.kernel_size)


_LAYOUTS = (_Transposed(), _Embedding(), _Convolution())


def layout_of(layer: nn.Module) -> Layout | None:
    """The layer's layout; None for those of `nn.Linear`."""
    return next((layout for layout in _LAYOUTS if isinstance(layer, layout.types())), None)


def layout_types() -> tuple[type[nn.Module], ...]:
    return tuple(kind for layout in _LAYOUTS for kind in layout.types())


def conv1d() -> tuple[type[nn.Module], ...]:
    """GPT-2's transposed linear layer; a class tuple, empty while Transformers is not imported."""
    utils = sys.modules.get("transformers.pytorch_utils")
    return (utils.Conv1D,) if utils is not None else ()


def is_linear_kind(layer: nn.Module) -> bool:
    """False for the kinds that are targeted by name only."""
    return not isinstance(layer, (*EMBEDDINGS, *CONVOLUTIONS))


def embed_scaled(layer: nn.Module, y: Tensor) -> Tensor:
    """``y`` times what Gemma's embeddings are multiplied with in the layer, behind the weight."""
    scale = getattr(layer, "embed_scale", None)
    return y if scale is None else y * torch.as_tensor(scale).to(y)


def with_weights(like: nn.Module, weight: Tensor, bias: Tensor | None) -> nn.Module:
    """A layer with ``like``'s class and settings, and weights of its own.

    What ``like`` computes (`parametrize`, weight or spectral norm, `prune`) is plain here.
    """
    new = twin(like, {})
    if computing := computing_hooks(like):
        hooks = like._forward_pre_hooks.items()
        new._forward_pre_hooks = OrderedDict((k, v) for k, v in hooks if k not in computing)
        new._parameters = {k: v for k, v in new._parameters.items() if not _is_part(k)}
        new._buffers = {k: v for k, v in new._buffers.items() if not _is_part(k)}
    given = {"weight": weight} if bias is None else {"weight": weight, "bias": bias}
    for name, parameter in given.items():
        vars(new).pop(name, None)
        new._parameters[name] = nn.Parameter(parameter, requires_grad=False)
    return new


def _is_part(name: str) -> bool:
    """Whether a hook computes the weight or bias from the tensor called ``name``."""
    return name.startswith(("weight_", "bias_"))


def linear_from(weight: Tensor, bias: Tensor | None = None) -> nn.Linear:
    """A frozen `nn.Linear` around ``weight`` ``(out, in)`` and ``bias``; nothing is copied."""
    linear = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None, device="meta")
    linear.weight = nn.Parameter(weight.detach(), requires_grad=False)
    if bias is not None:
        linear.bias = nn.Parameter(bias.detach(), requires_grad=False)
    return linear
