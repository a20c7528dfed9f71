"""What of the base model itself goes to an adapter's file, and comes from it: embeddings.

An adapter file holds what differs from the base's checkpoint. Of the base that is its embeddings
once their vocabulary has changed: the new rows are random, and in no checkpoint. PEFT also writes
embeddings that it only targets, which repeat what the base has.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from quantlora.adapters.adapted_model import AdaptedModel
from quantlora.adapters.adapter_modules import embedding_ends, plain_module
from quantlora.checkpoint.base_vocabulary import base_vocabulary, vocabulary, why_unknown
from quantlora.checkpoint.keys import base_name
from quantlora.distributed.gather import is_shard
from quantlora.errors import AdapterError, AdapterFileError, warn

#: On a model whose base has values that came with an adapter's file: the names of the parameters.
_BROUGHT = "quantlora_base_values"


def changed_base(
    adapted: AdaptedModel, adapter: str, save_embedding_layers: bool | str = "auto"
) -> dict[str, nn.Parameter]:
    """The base's parameters that the file of ``adapter`` must hold, by their names in the model.

    Args:
        save_embedding_layers: ``"auto"``, or whether to write the embeddings whatever they are.
    """
    if save_embedding_layers not in (True, False, "auto"):
        raise AdapterError(
            f'save_embedding_layers is True, False or "auto", not {save_embedding_layers!r}.'
        )
    if not save_embedding_layers:
        return {}
    brought = vars(adapted.model).get(_BROUGHT, ())
    found = {n: p for n, p in base_parameters(adapted).items() if base_name(n) in brought}
    if save_embedding_layers is True or _resized(adapted, adapter):
        found |= _embeddings(adapted)
    return _once(found)


def _resized(adapted: AdaptedModel, adapter: str) -> bool:
    model = adapted.model
    named = (adapted.state.known(adapter).base_model_name_or_path, vars(model).get("name_or_path"))
    names = [name for name in named if name]
    before, now = base_vocabulary(model, names), vocabulary(getattr(model, "config", None))
    if not names or now in (None, before):
        return False
    told = (
        f"{why_unknown(names[0])}, so nobody can tell whether the vocabulary was changed. If it "
        f"was: save_embedding_layers=True."
        if before is None
        else f"the vocabulary has {now} tokens and that of the base's checkpoint {before}: the "
        f"embeddings are saved with the adapter, for they are nowhere else "
        f"(save_embedding_layers=False leaves them out)."
    )
    warn(told)
    return before is not None


def _embeddings(adapted: AdaptedModel) -> dict[str, nn.Parameter]:
    """The frozen parameters of all modules with one row for each token."""
    heads = [plain_module(end)[0] for end in embedding_ends(adapted.model) if end is not None]
    if not heads:
        raise AdapterError(
            f"save_embedding_layers: a {type(adapted.model).__name__} does not say which its "
            f"embeddings are (get_input_embeddings): name them in modules_to_save."
        )
    rows = {getattr(head, "num_embeddings", None) for head in heads} - {None}
    found: dict[str, nn.Parameter] = {}
    for path, module in adapted.modules.items():
        plain, prefix = plain_module(module)
        tokens = isinstance(plain, nn.Embedding) and plain.num_embeddings in rows
        if not (tokens or any(plain is head for head in heads)):
            continue
        for name, parameter in plain.named_parameters(recurse=False):
            if parameter.is_floating_point():
                found[f"{path}.{prefix}{name}"] = parameter
            else:
                warn(
                    f"{path}: it is packed, and its changed values cannot be saved with the "
                    f"adapter: keep this layer float before the vocabulary is changed.",
                )
    return found


def _once(named: Mapping[str, nn.Parameter]) -> dict[str, nn.Parameter]:
    """Each parameter under the first of its names."""
    first = {id(tensor): name for name, tensor in reversed(list(named.items()))}
    return {name: tensor for name, tensor in named.items() if first[id(tensor)] == name}


def base_parameters(adapted: AdaptedModel) -> dict[str, nn.Parameter]:
    """The base's own parameters by their names in ``model``; one of several names will do."""
    found: dict[str, nn.Parameter] = {}
    for path, module in adapted.modules.items():
        plain, prefix = plain_module(module)
        ours = plain is not module
        for name, parameter in plain.named_parameters(recurse=ours, remove_duplicate=False):
            found[f"{path}.{prefix}{name}".removeprefix(".")] = parameter
    return found


def base_values(
    source: str, others: Mapping[str, Tensor], adapted: AdaptedModel
) -> dict[str, tuple[nn.Parameter, Tensor]]:
    """For each of a file's other tensors that the base does not have already: where it goes.

    Raises `AdapterFileError` for a tensor that is nobody's, has another shape, or is not what the
    adapters that are on the model already were trained with.
    """
    base = {base_name(name): p for name, p in base_parameters(adapted).items()} if others else {}
    found: dict[str, tuple[nn.Parameter, Tensor]] = {}
    for key, tensor in others.items():
        name = base_name(key)
        if name not in base:
            raise AdapterFileError(
                f"{source}: {key} belongs to no LoRA layer, to no module that the config names in "
                f"modules_to_save, and to no parameter of the base: is it for another base model?"
            )
        if not _same(source, key, base[name], tensor):
            found[name] = base[name], tensor
    if found and (there := adapted.state.configs):
        raise AdapterFileError(
            f"{source}: it brings values of the base itself ({next(iter(found))}) that are not "
            f"those under {', '.join(there)}, which would compute something else with them: load "
            f"it first, or on a model of its own."
        )
    return found


def _same(source: str, key: str, base: nn.Parameter, tensor: Tensor) -> bool:
    """Whether the base has the file's values already, up to the rounding of their dtypes."""
    if is_shard(base) or base.is_meta or not base.is_floating_point():
        raise AdapterFileError(
            f"{source}: it brings values of the base itself, {key}, and this one is sharded, "
            f"offloaded or packed ({base.dtype}): load the adapter on a model whose embeddings are "
            f"whole and float, before it is distributed."
        )
    if base.shape != tensor.shape:
        rows = base.shape[1:] == tensor.shape[1:]
        resize = f"call model.resize_token_embeddings({len(tensor)}) before you load it"
        raise AdapterFileError(
            f"{source}: {key} is {tuple(tensor.shape)} in the file and {tuple(base.shape)} in this "
            f"model: {resize if rows else 'is it for another base model?'}"
        )
    here, there = base.detach().cpu(), tensor
    step = max(torch.finfo(here.dtype).eps, torch.finfo(there.dtype).eps)
    wide = here.to(torch.promote_types(here.dtype, there.dtype))
    return torch.equal(wide, there.to(wide.dtype)) or (
        here.dtype != there.dtype and torch.allclose(wide, there.to(wide.dtype), step, 1e-7)
    )


@contextmanager
def in_place(
    source: str, values: Mapping[str, tuple[nn.Parameter, Tensor]], model: nn.Module
) -> Iterator[None]:
    """Give the base the file's values; if the block fails, its own again."""
    before = [(parameter, parameter.detach().clone()) for parameter, _ in values.values()]
    try:
        with torch.no_grad():
            for parameter, tensor in values.values():
                parameter.copy_(tensor)
        yield
    except BaseException:
        with torch.no_grad():
            for parameter, old in before:
                parameter.copy_(old)
        raise
    if values:
        vars(model)[_BROUGHT] = tuple({**dict.fromkeys(vars(model).get(_BROUGHT, ())), **values})
        warn(
            f"{source}: the adapter came with tensors of the base, which are in the model "
            f"now in place of its own: {', '.join(values)}.",
        )
