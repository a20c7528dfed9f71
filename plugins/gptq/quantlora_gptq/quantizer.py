"""The quantizer ``gptq``, for layers of GPTQModel and of AutoGPTQ."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from quantlora import AffineWeight, InferenceCopy, Quantizer, grid_copy
from quantlora.errors import warn
from quantlora_gptq.checkpoints import check_reading, checkpoint_format
from quantlora_gptq.dequantize import dequantize, to_affine
from quantlora_gptq.kernels import check_kernel, is_gptq, keep_trainable
from quantlora_gptq.layout import BITS, in_features, layout, out_features, tensor
from quantlora_gptq.packed_layer import checkpoint_tensors, round_like, round_new
from quantlora_gptq.requires import REQUIRES, library_of


class GptqQuantizer(Quantizer):
    """Reads and writes the layers of both libraries; trained with our own products only."""

    name: ClassVar[str] = "gptq"
    also_called: ClassVar[tuple[str, ...]] = ("autogptq", "auto_gptq", "gptqmodel")
    module: ClassVar[str] = "gptqmodel"
    other_modules: ClassVar[tuple[str, ...]] = ("auto_gptq",)
    requires = (REQUIRES,)
    bits: ClassVar[tuple[int, ...]] = BITS
    options: ClassVar[tuple[str, ...]] = ("group_size", "sym", "desc_act", "tokenizer", "save_to")
    # Needs texts to calibrate on: never the choice where the user leaves it to us.
    preference: ClassVar[int] = -10

    def layer_types(self) -> tuple[type[nn.Module], ...]:
        """None to name: a layer is known by its buffers and method, see `matches`."""
        return ()

    def matches(self, layer: nn.Module) -> bool:
        return is_gptq(layer)

    def dequantize(self, layer: nn.Module) -> Tensor:
        return dequantize(layer)

    def inference_copy(self, layer: nn.Module, dtype: torch.dtype) -> InferenceCopy:
        """Codes for torch's int4 kernel where it takes them, else floats."""
        form, dense = layout(layer), partial(self.dequantize_to, layer, dtype)
        affine, neighbours = partial(self.affine, layer), form.group_index is None
        shape = self.shape(layer)
        return grid_copy(affine, dense, shape, dtype, form.bits, form.group_size, neighbours)

    def prepare(self, layer: nn.Module, path: str) -> None:
        check_kernel(layer, path)
        keep_trainable(layer)

    def check_model(self, model: nn.Module, layers: Mapping[str, nn.Module]) -> None:
        check_reading(model, layers)

    @torch.no_grad()
    def quantize(
        self, linear: nn.Linear, like: nn.Module | None = None, **options: Any
    ) -> nn.Module:
        """Round ``linear`` to nearest; only `quantize_layers` can calibrate.

        Args:
            like: a layer whose class, bits, groups and dtypes are taken.
            options: ``bits``, ``group_size``, ``sym`` where ``like`` is not given.
        """
        return round_like(linear, like) if like is not None else round_new(linear, **options)

    def quantize_layers(
        self,
        model: nn.Module,
        layers: Mapping[str, nn.Linear],
        *,
        calibration: Sequence[str] | Sequence[Mapping[str, Any]] | None = None,
        **options: Any,
    ) -> dict[str, nn.Module]:
        """Quantize by GPTQ (Frantar et al. 2022, arXiv:2210.17323) over calibration texts.

        Args:
            calibration: texts, or tokenized inputs (mappings with ``input_ids``). Without it the
                weights are rounded to nearest, with a warning.
            options: for texts ``tokenizer``; ``bits`` (4), ``group_size`` (None: what divides),
                ``sym`` (True), ``desc_act`` (False), ``save_to``: a folder that gets the quantized
                checkpoint in the standard layout.

        Raises:
            BackendError: a setting that cannot be, or layers that GPTQModel does not quantize.
        """
        if calibration is not None:
            from quantlora_gptq.calibrate import calibrate

            return calibrate(model, layers, calibration, **options)
        warn(
            "backend='gptq' without calibration texts rounds the weights to nearest, which costs "
            "accuracy: give quantize_options={'calibration': texts, 'tokenizer': tokenizer}.",
            UserWarning,
        )
        return super().quantize_layers(model, layers, **options)

    def shape(self, layer: nn.Module) -> tuple[int, int]:
        return out_features(layer), in_features(layer)

    def device(self, layer: nn.Module) -> torch.device:
        return tensor(layer, "qweight").device

    def group_size(self, layer: nn.Module) -> int | None:
        return layout(layer).group_size

    def group_index(self, layer: nn.Module) -> Tensor | None:
        return layout(layer).group_index

    def affine(self, layer: nn.Module) -> AffineWeight | None:
        return to_affine(layer)

    def checkpoint_tensors(self, layer: nn.Module, model: nn.Module) -> Mapping[str, Tensor]:
        return checkpoint_tensors(layer, checkpoint_format(model))

    def describe(self, layer: nn.Module) -> dict[str, Any]:
        form = layout(layer)
        return {
            "bits": form.bits,
            "group_size": form.group_size,
            "desc_act": form.group_index is not None,
            "library": library_of(layer),
        }
