"""`Quantizer`: all that a backend has to say about its weight format.

The core owns the mathematics of LoRA. A backend says which layers are its own, how to get their
weight back as a float matrix and, if it can, how to pack a float matrix again. Everything else
(gradients, DoRA, merge, mixed batches, export) follows from these.
"""

from __future__ import annotations

import sys
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from quantlora.errors import BackendError
from quantlora.formats.affine import AffineWeight
from quantlora.formats.autocast import without_autocast
from quantlora.formats.expert_stack import ExpertStack
from quantlora.formats.inference_copy import InferenceCopy
from quantlora.formats.layer_facts import LayerFacts
from quantlora.formats.layer_files import LayerFiles
from quantlora.formats.preparation import Preparation
from quantlora.requirements import AnyRequirement

#: The name of the built-in format of plain floating weights.
FLOAT = "float"


class Quantizer(LayerFacts, LayerFiles, Preparation, ABC):
    """One weight format. Subclass it, return an instance from ``quantlora_quantizers``.

    Shapes follow ``nn.Linear``: a weight is ``(out_features, in_features)``. What it says of one
    layer besides is in `LayerFacts`, how layers are kept in files in `LayerFiles`, what it does to
    a model that gets adapters in `Preparation`.
    """

    #: Name users type as ``backend=``; Transformers' key where one exists.
    name: ClassVar[str]
    #: Import name of the library whose layers these are. Layers of a library that nobody has
    #: imported cannot be in a model, so `matches` is called only once it is in ``sys.modules``.
    module: ClassVar[str]
    #: Further libraries that have layers of this same format.
    other_modules: ClassVar[tuple[str, ...]] = ()
    #: What must be installed; read from metadata only.
    requires: ClassVar[tuple[AnyRequirement, ...]] = ()
    #: Bit widths `quantize` offers, by ``bits=`` where there are several; empty when the format
    #: can only be read. `describe` says a layer's as ``bits``.
    bits: ClassVar[tuple[int, ...]] = ()
    #: Further options of `quantize` and `quantize_layers` that are no named arguments of theirs.
    #: Any other in ``quantize_options`` is refused before they are called.
    options: ClassVar[tuple[str, ...]] = ()
    #: Whether layers of this format hold plain floating numbers, packed in no way.
    is_float: ClassVar[bool] = False
    #: Where the user leaves the choice to us, the highest one is taken (`best_quantizer`).
    preference: ClassVar[int] = 0
    #: What papers and other programs call it, in lower case: who types that is told its name.
    also_called: ClassVar[tuple[str, ...]] = ()

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Whoever asks for a weight, and wherever: autocast is off within."""
        super().__init_subclass__(**kwargs)
        for name in ("dequantize", "dequantize_to"):
            if name in vars(cls):
                setattr(cls, name, without_autocast(vars(cls)[name]))

    @property
    def imported(self) -> bool:
        """Whether a library with layers of this format is imported."""
        return any(name in sys.modules for name in (self.module, *self.other_modules))

    @abstractmethod
    def layer_types(self) -> tuple[type[nn.Module], ...]:
        """Layer classes of this format. Import the library in here, not at the top."""

    def matches(self, layer: nn.Module) -> bool:
        """Whether ``layer`` is in this format. Override it where the format is in the tensor."""
        return isinstance(layer, self.layer_types())

    @abstractmethod
    def dequantize(self, layer: nn.Module) -> Tensor:
        """The weight as a float matrix ``(out_features, in_features)``, on the layer's device.

        The dtype is the format's own and does not lose precision; the caller casts. Called in
        every forward and again in every backward, so it must not change the layer; with autocast
        off, so that what is multiplied in it (rotations, codebooks) keeps its dtype.
        """

    def dequantize_to(self, layer: nn.Module, dtype: torch.dtype) -> Tensor:
        """`dequantize` in ``dtype``: what products are taken with, forward and backward.

        Override it where the format can be unpacked straight into a half-precision dtype: that
        spares a float32 copy of the weight and most of the time.
        """
        return self.dequantize(layer).to(dtype)

    def trainable(self, layer: nn.Module) -> Tensor | None:
        """The weight ``(out_features, in_features)`` with its gradient; None where it is packed."""
        return None

    def quantize(
        self, linear: nn.Linear, like: nn.Module | None = None, **options: Any
    ) -> nn.Module:
        """Pack a float layer into this format; ``linear`` is left as it is.

        Args:
            linear: the float layer; its bias is carried over.
            like: a layer of this format whose settings (bits, block size, dtypes) are to be used;
                merging packs with the settings of the layer it merges into.
            options: this format's own settings when ``like`` is not given.
        """
        raise BackendError(f"backend {self.name!r} cannot quantize: it only reads layers.")

    def quantize_layers(
        self, model: nn.Module, layers: Mapping[str, nn.Linear], **options: Any
    ) -> dict[str, nn.Module]:
        """Pack several layers; formats that calibrate over the whole model override it.

        Returns new layers by path and leaves ``model`` as it is.
        """
        return {path: self.quantize(linear, **options) for path, linear in layers.items()}

    def quantize_experts(
        self, weight: Tensor, path: str, like: ExpertStack | None = None, **options: Any
    ) -> ExpertStack:
        """Pack ``weight`` ``(experts, out_features, in_features)``, each expert by itself.

        Arguments as for `quantize`; ``path`` is the parameter's name, for messages and patterns.
        """
        raise BackendError(f"{path}: backend {self.name!r} packs layers only, no fused experts.")

    def matmul(self, layer: nn.Module, x: Tensor) -> Tensor | None:
        """``x @ dequantize(layer).T`` by a faster kernel, without bias, for inference only.

        Called only while gradients are off. Return None to decline (wrong dtype, many tokens).
        """
        return None

    def inference_copy(self, layer: nn.Module, dtype: torch.dtype) -> InferenceCopy | None:
        """How the weight may be kept a second time, for tokens on a CPU; None: not at all.

        Asked where `matmul` declines, while gradients are off and the model is in eval mode. A
        format that overrides it says in `weight_tensors` what the copy depends on. `dense_copy`
        is right for every format; a kernel for packed codes takes less memory and time.

        Args:
            dtype: that of the input, which the product is to have too.
        """
        return None

    def affine(self, layer: nn.Module) -> AffineWeight | None:
        """The weight as codes, scales and zero-points, where the format is such a grid."""
        return None

    def from_affine(self, weight: AffineWeight, bias: Tensor | None) -> nn.Module:
        """A layer with exactly these codes, scales and float zero-points; optional."""
        raise BackendError(f"backend {self.name!r} cannot hold float zero-points.")

    @property
    def can_quantize(self) -> bool:
        """Whether `quantize` is overridden."""
        return type(self).quantize is not Quantizer.quantize

    @property
    def can_quantize_experts(self) -> bool:
        """Whether `quantize_experts` is overridden."""
        return type(self).quantize_experts is not Quantizer.quantize_experts

    @property
    def can_hold_affine(self) -> bool:
        """Whether `from_affine` is overridden."""
        return type(self).from_affine is not Quantizer.from_affine

    def availability_error(self) -> str:
        """Why this backend cannot be used here, with the fix; empty when it can."""
        missing = [found for found in (need.check() for need in self.requires) if not found]
        return "\n".join(f"{need.reason}\n{need.fix}" for need in missing)

    def require(self) -> None:
        """Raise `MissingLibraryError` unless everything in ``requires`` is installed."""
        for need in self.requires:
            need.check().require()
