"""The tensors of the merged model, one layer at a time, by their names in the plain model."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from quantlora.adapters.adapted_model import AdaptedModel
from quantlora.adapters.adapter_modules import OURS, embedding_ends, frozen_modules
from quantlora.adapters.modules_to_save import ModulesToSaveWrapper
from quantlora.discovery.registration import registry
from quantlora.errors import MergeError
from quantlora.experts.packed import PackedExperts
from quantlora.experts.stacks_format import whole_stack
from quantlora.formats.layouts import is_linear_kind
from quantlora.formats.parameters import FloatParameters
from quantlora.formats.quantizer import Quantizer
from quantlora.layers.layer import LoraLayer
from quantlora.layers.tied import TiedLayer
from quantlora.merging.merge_layer import merge_layer


class MergedTensors:
    """What is to be exported; iterate over it for ``(name, tensor)``.

    Args:
        names: the adapters to fold in.
        mode: ``"dequantize"``, ``"requantize"`` or ``"exact"``, as in `merge`.
        dtype: that of float weights.
        fixed: the architecture is fixed, as Transformers' are: it decides which layers have a
            bias, and weights with two names (tied) are written under the first.
    """

    def __init__(
        self,
        adapted: AdaptedModel,
        names: tuple[str, ...],
        mode: str,
        dtype: torch.dtype,
        fixed: bool,
    ) -> None:
        self.adapted, self.model = adapted, adapted.model
        self.names, self.mode, self.dtype, self.fixed = names, mode, dtype, fixed
        self._seen: set[int] = set()
        #: What an exact merge has put in another format: the layers without their values.
        self.repacked: dict[str, tuple[nn.Module, Quantizer]] = {}

    def __iter__(self) -> Iterator[tuple[str, Tensor]]:
        self._seen.clear()
        self.repacked.clear()
        written: set[str] = set()
        for name, tensor in self._walk(self.model, ""):
            written.add(name)
            yield name, tensor
        if self.fixed and both_ends(self.model, written):
            yield from self._shared(written)

    def _shared(self, written: set[str]) -> Iterator[tuple[str, Tensor]]:
        """What had another name as well: the export's config says that nothing is tied."""
        for path, module in self.adapted.modules.items():
            if isinstance(module, OURS):
                continue
            for name, tensor in module._parameters.items():
                key = f"{path}.{name}" if path else name
                if tensor is not None and id(tensor) in self._seen and key not in written:
                    yield key, tensor.detach().to(self.dtype)

    def merged(self, path: str, layer: LoraLayer) -> tuple[nn.Module, Quantizer]:
        """What ``layer`` becomes."""
        future = merge_layer(path, layer, self.names, self.mode, self.dtype)
        base, quantizer = (future.base, future.quantizer) if future else layer.plain_base
        if isinstance(base, PackedExperts) and not self._stays_packed(base):
            base, quantizer = self._float_experts(path, base), FloatParameters()
        self._check_class(path, layer, base)
        had = layer.plain_base[1].bias(layer.plain_base[0])
        if self.fixed and had is None and quantizer.bias(base) is not None:
            raise MergeError(
                f"{path}: the adapter has a bias (lora_bias) and the layer has none, so there is "
                f"no place for it in this architecture's files. Keep the adapter apart."
            )
        return base, quantizer

    def _check_class(self, path: str, layer: LoraLayer, base: nn.Module) -> None:
        """A fixed architecture makes its own class again, and the files must be for that one."""
        plain = layer.plain_base[0]
        kind = plain.kind if isinstance(plain, PackedExperts) else type(plain)
        made = base.kind if isinstance(base, PackedExperts) else type(base)
        other = not is_linear_kind(plain) and made is not kind
        if self.fixed and other:
            raise MergeError(
                f"{path}: {type(plain).__name__} computes its weight, and the merged one is a "
                f"plain {type(base).__name__}, which this architecture's files cannot hold. Keep "
                f"the adapter apart, or use quantlora.merge_and_unload on the model in memory."
            )

    def _stays_packed(self, module: PackedExperts) -> bool:
        """Whether the files have its stacks as they are in memory."""
        return self.mode == "requantize" and module.in_checkpoints

    def _float_experts(self, path: str, module: PackedExperts) -> nn.Module:
        """Packed experts as the float module that files have; no loader knows packed ones."""
        if self.mode != "dequantize":
            raise MergeError(
                f"{path}: its experts are packed, and Transformers loads no checkpoint of such "
                f'experts. Use mode="dequantize" for float ones, or keep the adapter apart.'
            )
        return module.unpacked(
            {n: whole_stack(module, n).to(stack.dtype) for n, stack in module.stacks.items()}
        )

    def _walk(self, module: nn.Module, path: str) -> Iterator[tuple[str, Tensor]]:
        packed = None if isinstance(module, LoraLayer) else registry().packed_format(module)
        if isinstance(module, LoraLayer):
            if self._first(module):
                base, quantizer = self.merged(path, module)
                new = base is not module.plain_base[0]
                yield from self._layer(base, quantizer, path, new)
                if new and self.mode == "exact":
                    self.repacked[path] = base.to("meta"), quantizer
        elif packed is not None:
            if self._first(module):
                yield from self._layer(module, packed, path)
        elif isinstance(module, PackedExperts) and self._stays_packed(module):
            for name, tensor in module.state_dict().items():
                yield f"{path}.{name}", tensor
        elif isinstance(module, PackedExperts):
            yield from self._own(self._float_experts(path, module), path, new=True)
        elif isinstance(module, TiedLayer):
            yield from self._tied(module, path)
        elif isinstance(module, ModulesToSaveWrapper):
            yield from self._walk(self._trained(module), path)
        else:
            yield from self._own(module, path)
            for name, child in module.named_children():
                yield from self._walk(child, f"{path}.{name}" if path else name)

    def _tied(self, module: TiedLayer, path: str) -> Iterator[tuple[str, Tensor]]:
        """The weight is the source's, written there; here once more where nobody would tie it."""
        source: Any = module.source
        rest = copy.copy(module.base_layer)
        rest._parameters = {n: p for n, p in rest._parameters.items() if n != "weight"}
        if not self.fixed:
            lora = isinstance(source, LoraLayer)
            plain: Any = self.merged(source.path, source)[0] if lora else self._trained(source)
            yield f"{path}.weight", plain.weight.detach().to(self.dtype)
        yield from self._own(rest, path)

    def _trained(self, module: ModulesToSaveWrapper) -> nn.Module:
        """The copy that one of the adapters has trained in full, or the original."""
        trained_by = [name for name in self.names if name in module.adapters]
        return module.modules_to_save[trained_by[0]] if trained_by else module.original_module

    def _first(self, thing: object) -> bool:
        """Whether it has not been written under another name; the model keeps its id unique."""
        new = not self.fixed or id(thing) not in self._seen
        self._seen.add(id(thing))
        return new

    def _layer(
        self, layer: nn.Module, quantizer: Quantizer, path: str, new: bool = False
    ) -> Iterator[tuple[str, Tensor]]:
        if quantizer.is_float:
            yield from self._own(layer, path, new)
        elif self.mode != "dequantize":
            for name, tensor in quantizer.checkpoint_tensors(layer, self.model).items():
                _check_plain(tensor, f"{path}.{name}", quantizer)
                yield f"{path}.{name}", tensor
        else:
            yield f"{path}.weight", quantizer.dequantize_to(layer, self.dtype)
            bias = quantizer.bias(layer)
            if bias is not None:
                yield f"{path}.bias", bias.detach().to(self.dtype)

    def _own(self, module: nn.Module, path: str, new: bool = False) -> Iterator[tuple[str, Tensor]]:
        """The module's own tensors, without its children's; those of a ``new`` one are not tied."""
        passing = module._non_persistent_buffers_set
        buffers = (
            (name, buffer) for name, buffer in module._buffers.items() if name not in passing
        )
        for name, tensor in (*module._parameters.items(), *buffers):
            if tensor is not None and (new or self._first(tensor)):
                floating = tensor.is_floating_point()
                value = tensor.detach().to(self.dtype) if floating else tensor
                yield f"{path}.{name}" if path else name, value


def both_ends(model: nn.Module, written: set[str]) -> bool:
    """Whether the input and the output embeddings are each among the names ``written``."""
    ends = embedding_ends(model)
    paths = [path for path, module in frozen_modules(model) if any(module is e for e in ends)]
    return len(paths) == 2 and all(f"{path}.weight" in written for path in paths)


def _check_plain(tensor: Tensor, name: str, quantizer: Quantizer) -> None:
    """Files hold plain tensors; a library's own are taken apart by its format."""
    if is_traceable_wrapper_subclass(tensor):
        raise MergeError(
            f"{name}: a {type(tensor).__name__} is no plain tensor, and format {quantizer.name!r} "
            f'does not say how files hold it (Quantizer.checkpoint_tensors). Use mode="dequantize".'
        )
