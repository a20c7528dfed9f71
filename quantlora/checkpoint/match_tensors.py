"""Which tensors of a file belong to which place in a model, and what is wrong where they do not."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

import torch
from torch import Tensor

from quantlora.checkpoint.keys import PREFIX, split_key
from quantlora.errors import AdapterFileError
from quantlora.names import outer_path, plain_path
from quantlora.suggestions import near
from quantlora.wrapping.plan import Plan, PlannedLayer

#: The tensors of a file by the path of their module, then by name: ``lora_A.weight``.
ByPath = dict[str, dict[str, Tensor]]


def by_path(
    tensors: Mapping[str, Tensor], saved: Collection[str]
) -> tuple[ByPath, dict[str, Tensor]]:
    """Sort the tensors of a file; what belongs to no adapter's place is given apart, by its key.

    Args:
        saved: paths of the modules that the adapter trains in full.
    """
    found: ByPath = {}
    others: dict[str, Tensor] = {}
    for key, tensor in tensors.items():
        path, name = split_key(key)
        if not path:
            path = next(
                (module for module in map(plain_path, saved) if name.startswith(f"{module}.")), ""
            )
            name = name.removeprefix(f"{path}.")
        if path and name.startswith("modules_to_save."):  # PEFT writes resized copies twice
            found.setdefault(path, {}).setdefault(name.removeprefix("modules_to_save."), tensor)
        elif path and not name.startswith("original_module."):
            found.setdefault(path, {})[name] = tensor
        else:
            others[key.removeprefix(PREFIX)] = tensor
    return found, others


def split_biases(
    source: str, tensors: Mapping[str, Tensor], biases: Sequence[tuple[str, ...]]
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The values of trained biases, each by the first of its names, and the other tensors."""
    plain = {key.removeprefix(PREFIX): key for key in tensors}
    values: dict[str, Tensor] = {}
    for names in biases:
        found = [plain[name] for name in names if name in plain]
        if not found:
            raise AdapterFileError(
                f"{source} does not fit this model: its config trains biases, and it lacks "
                f"{names[0]}. Is it for another base model? PEFT 0.17 does not save what it trains "
                f'with bias="lora_only"; then "bias": "none" in adapter_config.json loads the rest.'
            )
        values[names[0]] = tensors[found[0]]
    taken = {plain[name] for names in biases for name in names if name in plain}
    return values, {key: tensor for key, tensor in tensors.items() if key not in taken}


def check_paths(source: str, found: ByPath, plan: Plan) -> None:
    """The file has tensors for the places the config picks, and for no others."""
    first = {id(planned.layer): planned.path for planned in reversed(plan.layers)}
    wanted = {plain_path(path) for path in (*first.values(), *plan.saved)}
    strange = [path for path in found if path not in wanted]
    absent = [path for path in wanted if path not in found]
    faults = []
    if strange:
        close = near(strange[0], wanted) or sorted(wanted)[:3]
        faults.append(
            f"it has tensors for {len(strange)} layers that the model lacks or its config does "
            f"not target, {strange[0]} first (near names: {', '.join(close)})"
        )
    if absent:
        faults.append(f"it lacks those of {len(absent)} targeted layers, {min(absent)} first")
    if faults:
        raise AdapterFileError(
            f"{source} does not fit this model: {'; '.join(faults)}. Is it for another base model?"
        )


def check_ranks(source: str, found: ByPath, plan: list[PlannedLayer]) -> None:
    """No memory is taken for a rank that no tensor of the file has."""
    for planned in plan:
        tensors = found.get(plain_path(planned.path), {}).values()
        largest = max(
            (size for tensor in tensors for size in tensor.shape), default=planned.target.r
        )
        if planned.target.r > largest:
            raise AdapterFileError(
                f"{source} does not fit this model: {planned.path} has rank {planned.target.r} by "
                f"its config, and its tensors have no more than {largest} rows and columns."
            )


@torch.no_grad()
def fill(source: str, wanted: Mapping[str, Tensor], given: Mapping[str, Tensor]) -> None:
    """Copy ``given`` into ``wanted`` where both have the same names and shapes."""
    check_shapes(source, {name: tuple(tensor.shape) for name, tensor in wanted.items()}, given)
    for name, tensor in wanted.items():
        if tensor.is_floating_point() != given[name].is_floating_point():
            raise AdapterFileError(
                f"{source} does not fit this model: {name} is {given[name].dtype} in the file, "
                f"{tensor.dtype} in the model. Is it for another base model?"
            )
        tensor.copy_(given[name])
        check_finite(source, name, tensor)


def check_shapes(
    source: str, here: Mapping[str, tuple[int, ...]], given: Mapping[str, Tensor]
) -> None:
    """Raise `AdapterFileError` unless ``given`` has these names and shapes, and no others."""
    there = {name: tuple(tensor.shape) for name, tensor in given.items()}
    if here != there:
        names = [name for name in {**here, **there} if here.get(name) != there.get(name)]
        facts = [f"{n}: expected {_shape(here, n)}, found {_shape(there, n)}" for n in names]
        raise AdapterFileError(
            f"{source} does not fit this model: {'; '.join(facts)}. Is it for another base model, "
            f"or has adapter_config.json been changed?"
        )


def check_finite(source: str, name: str, tensor: Tensor) -> None:
    """Raise `AdapterFileError` where a file's values are too large for the model's dtype."""
    if tensor.is_floating_point() and not torch.isfinite(tensor).all():
        raise AdapterFileError(
            f"{source} does not fit this model: {name} has values that {tensor.dtype} cannot hold. "
            f"Load the model in a wider dtype."
        )


def _shape(shapes: Mapping[str, tuple[int, ...]], name: str) -> str:
    return str(shapes[name]) if name in shapes else "nothing"


def by_outer_path(found: ByPath, adapted: Collection[str]) -> ByPath:
    """``found`` by paths in the plain model; ``adapted``: of modules with adapted parameters.

    Where PEFT is given an attention and its ``out_proj`` by name, it writes a second adapter for
    the latter, ``attn.out_proj``, in a module that its forward never reaches: left out.
    """
    outer = {path: outer_path(path, adapted) for path in found}
    inside = {new for path, new in outer.items() if path != new}
    return {new: found[path] for path, new in outer.items() if path != new or path not in inside}
