"""What becomes of each tensor of a file: packed as it is, or unpacked, and why."""

from __future__ import annotations

from dataclasses import dataclass, field
from math import prod
from typing import Any

import torch
from torch import Tensor, nn

from quantlora.errors import ConfigError
from quantlora_gguf.gguf_file import FileTensor, GgufFile
from quantlora_gguf.layer import GgufEmbedding, GgufLinear
from quantlora_gguf.tensor_names import RowOrder, TensorNames, is_turned

#: So many names are enough to know what it is about.
_NAMED = 4
#: Subclasses of `nn.Linear` in Transformers that write the same product in another way.
_PLAIN = ("FalconLinear",)


@dataclass
class ModelPlan:
    """What a model without weights takes from a file.

    Args:
        layers: block types of the layers that stay packed, by path.
        orders: what happens to the rows of their tensors, by name in the model.
        sources: the file's tensors for each of the model's, by name in the model.
        unpacked: why a tensor in blocks becomes float, by name in the file.
        unused: the file's tensors that the model has no parameter for.
    """

    layers: dict[str, str] = field(default_factory=dict)
    orders: dict[str, RowOrder] = field(default_factory=dict)
    sources: dict[str, list[str]] = field(default_factory=dict)
    unpacked: dict[str, str] = field(default_factory=dict)
    unused: list[str] = field(default_factory=list)

    @classmethod
    def of(cls, file: GgufFile, model: Any, names: TensorNames) -> ModelPlan:
        """Decide for every tensor of ``file``.

        Raises:
            ConfigError: a shape is not the model's, or the model needs a tensor that is not there.
        """
        plan, tied = cls(), dict(getattr(model, "all_tied_weights_keys", None) or {})
        for tensor in file.tensors.values():
            plan._take(tensor, model, names)
        for name, source in tied.items():
            plan._tie(name, source, model)
        plan._check_complete(file, model, set(tied) | set(tied.values()))
        return plan

    def _take(self, tensor: FileTensor, model: Any, names: TensorNames) -> None:
        name = names.name_of(tensor.name)
        if name is None or name not in (known := model.state_dict()):
            self.unused.append(tensor.name)
            return
        self.sources.setdefault(name, []).append(tensor.name)
        if len(tensor.shape) < 3 and prod(tensor.shape) != known[name].numel():
            raise ConfigError(
                f"tensor {tensor.name} is {tensor.shape}, and {name} of the model is "
                f"{tuple(known[name].shape)}: the file's metadata are those of another model."
            )
        if tensor.kind is not None and len(tensor.shape) > 1:
            self._pack(tensor, name, model, names)

    def _pack(self, tensor: FileTensor, name: str, model: Any, names: TensorNames) -> None:
        """Keep ``tensor`` packed if its layer can hold it and only its rows are moved."""
        path, _, own = name.rpartition(".")
        assert tensor.kind is not None
        if len(tensor.shape) != 2 or own != "weight":
            self.unpacked[tensor.name] = "it is no matrix of a layer"
            return
        module = model.get_submodule(path)
        if reason := not_packable(module):
            self.unpacked[tensor.name] = reason
            return
        order = names.row_order(tensor.name, (tensor.shape[0], tensor.shape[1]))
        if order is None or order.turned != is_turned(module):
            self.unpacked[tensor.name] = "Transformers changes its elements, not only its rows"
            return
        self.layers[path], self.orders[name] = tensor.kind.name, order

    def _tie(self, name: str, source: str, model: Any) -> None:
        """A layer with the weight of a packed one is packed alike, or neither is."""
        path, source_path = name.rpartition(".")[0], source.rpartition(".")[0]
        if source_path not in self.layers or name in self.sources:
            return
        reason = not_packable(model.get_submodule(path))
        if not reason:
            self.layers[path] = self.layers[source_path]
            return
        del self.layers[source_path], self.orders[source]
        self.unpacked[self.sources[source][0]] = f"{path}, which has the same weight: {reason}"

    def _check_complete(self, file: GgufFile, model: Any, tied: set[str]) -> None:
        missing = [
            name for name in model.state_dict() if name not in self.sources | dict.fromkeys(tied)
        ]
        if missing:
            named = ", ".join(missing[:_NAMED])
            raise ConfigError(
                f"{file.path}: {len(missing)} parameters of the model are in no tensor of the file "
                f"that Transformers knows ({named}): the file lacks them, or architecture "
                f"{file.architecture!r} cannot be loaded packed."
            )


def not_packable(module: nn.Module) -> str:
    """Why the weight of ``module`` cannot be in blocks; empty where it can."""
    if isinstance(module, nn.Embedding):
        own = type(module).forward is nn.Embedding.forward
        if (own or _embed_scale(module) is not None) and module.max_norm is None:
            return ""
        return f"{type(module).__name__} does more than look rows up"
    if isinstance(module, nn.Linear):
        plain = type(module).forward is nn.Linear.forward or type(module).__name__ in _PLAIN
        return "" if plain else f"{type(module).__name__} does more than multiply"
    return "" if is_turned(module) else f"{type(module).__name__} is no linear layer"


def empty_layer(module: nn.Module, block_type: str, dtype: torch.dtype) -> nn.Module:
    """The packed layer in place of ``module``, on the meta device."""
    kwargs: dict[str, Any] = {"block_type": block_type, "device": "meta", "dtype": dtype}
    if isinstance(module, nn.Embedding):
        sizes = (module.num_embeddings, module.embedding_dim, module.padding_idx)
        return GgufEmbedding(*sizes, embed_scale=_embed_scale(module), **kwargs)
    weight, bias = _matrix(module), getattr(module, "bias", None)
    rows, width = weight.t().shape if is_turned(module) else weight.shape
    return GgufLinear(width, rows, bias is not None, **kwargs)


def _matrix(module: nn.Module) -> Tensor:
    weight = module.weight
    assert isinstance(weight, Tensor)
    return weight


def _embed_scale(module: nn.Module) -> float | None:
    """What an embedding of Transformers multiplies its rows with, where that is all it does."""
    found = getattr(module, "scalar_embed_scale", getattr(module, "embed_scale", None))
    if found is None or (isinstance(found, Tensor) and found.is_meta):
        return None
    return float(found)
