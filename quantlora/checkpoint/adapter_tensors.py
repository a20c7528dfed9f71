"""The tensors of an adapter's file, by their keys."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from torch import Tensor, nn

from quantlora.adapters.adapted_model import AdaptedModel
from quantlora.checkpoint.base_tensors import changed_base
from quantlora.checkpoint.keys import PREFIX, file_key, file_path
from quantlora.distributed.gather import is_shard, whole
from quantlora.errors import AdapterFileError
from quantlora.layers.trained_tokens import TrainedTokens
from quantlora.names import plain_path


def adapter_tensors(
    adapted: AdaptedModel,
    adapter: str,
    state_dict: Mapping[str, Tensor] | None = None,
    save_embedding_layers: bool | str = "auto",
) -> dict[str, Tensor]:
    """The adapter's tensors by their keys in the file."""
    value = values_of(adapted.model, state_dict)
    base = changed_base(adapted, adapter, save_embedding_layers)
    biases = adapted.state.biases.get(adapter, [])
    layers = adapted.lora_layers.items()
    tokens = [f"{path}.base_layer." for path, layer in layers if isinstance(layer, TrainedTokens)]
    named = {plain_path(_file_name(name, tokens)): parameter for name, parameter in base.items()}
    named |= {bias.names[0]: bias.parameter for bias in biases}
    return (
        {PREFIX + name: value(parameter) for name, parameter in named.items()}
        | {
            file_key(file_path(adapted.model, path, adapter), name): value(parameter)
            for path, module in adapted.adapter_modules.items()
            if module.has_adapter(adapter)
            for name, parameter in module.adapter_tensors(adapter).items()
        }
        | _tied_tensors(adapted, adapter, value)
    )


def _file_name(name: str, tokens: list[str]) -> str:
    """A frozen parameter's name as PEFT has it: a layer with trained tokens is two deep there."""
    for prefix in tokens:
        if name.startswith(prefix):
            outer, inner = prefix.removesuffix("base_layer."), name.removeprefix(prefix)
            return f"{outer}token_adapter.base_layer.{inner}"
    return name


def _tied_tensors(
    adapted: AdaptedModel, adapter: str, value: Callable[[Tensor], Tensor]
) -> dict[str, Tensor]:
    """What PEFT's files repeat for the layers that follow others; tokens it does not."""
    return {
        file_key(plain_path(path), name): tensor.contiguous()
        for path, tied in adapted.tied_layers.items()
        if isinstance(tied.base_layer, nn.Linear) and not isinstance(tied.source, TrainedTokens)
        if adapter in tied.source.adapters
        for name, tensor in tied.source.tied_tensors(adapter, value).items()
    }


def values_of(
    model: nn.Module, state_dict: Mapping[str, Tensor] | None
) -> Callable[[Tensor], Tensor]:
    """A tensor's value: from ``state_dict`` where it is there, else its own."""
    if state_dict is None:
        return whole
    names = {id(p): plain_path(name) for name, p in model.named_parameters()}
    values = {plain_path(name): tensor for name, tensor in state_dict.items()}

    def given(tensor: Tensor) -> Tensor:
        name = names.get(id(tensor), "")
        if name not in values and is_shard(tensor):
            raise AdapterFileError(
                f"{name}: the model is sharded and the state_dict given has not this parameter; "
                f"give the full state_dict, or none and call save_adapter on every process."
            )
        return values.get(name, tensor).detach()

    return given
