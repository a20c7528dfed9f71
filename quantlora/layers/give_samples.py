"""The samples of a mixed batch are given to the modules with adapters, and taken back."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Set
from dataclasses import replace

from quantlora.layers.adapter_module import AdapterModule
from quantlora.layers.calls import Calls, calls, store


def give_samples(
    modules: Collection[AdapterModule],
    samples: Mapping[int, tuple[str, ...]],
    time_first: Set[int] = frozenset(),
) -> Calls:
    """From now on, in this thread, ``modules`` have these samples, or are in no mixed batch.

    Args:
        samples, time_first: by ``id`` of the module, as in `Calls`; other modules than these stay.

    Returns:
        What held before. Its ``samples`` and ``time_first``, given again, restore it.
    """
    before, keys = calls(), {id(module) for module in modules}
    others = {key: names for key, names in before.samples.items() if key not in keys}
    given = {key: names for key, names in samples.items() if key in keys}
    turned = keys & time_first
    time_first = before.time_first - keys | turned
    store(replace(before, samples=others | given, time_first=time_first))
    for module in modules:
        module._traced_samples = given.get(id(module))
        module._traced_time_first = id(module) in turned
    return before
