"""The samples of a mixed batch are given to the modules with adapters, and taken back."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace

from quantlora.layers.adapter_module import AdapterModule
from quantlora.layers.calls import Calls, calls, store


def give_samples(
    modules: Collection[AdapterModule],
    names: tuple[str, ...] | None,
    time_first: Collection[AdapterModule] = (),
) -> Calls:
    """From now on, in this thread, sample i goes through ``names[i]``; None: no mixed batch.

    Args:
        time_first: those of ``modules`` that compute with (time, batch, features).

    Returns:
        What held before, for `give_samples_back`.
    """
    before = calls()
    keys, later = ({id(module) for module in some} for some in (modules, time_first))
    others = {key: names for key, names in calls().samples.items() if key not in keys}
    given = {} if names is None else dict.fromkeys(keys, names)
    turned = calls().time_first - keys | later
    store(replace(calls(), samples={**others, **given}, time_first=turned))
    for module in modules:
        module._traced_samples = names
        module._traced_time_first = id(module) in later
    return before


def give_samples_back(modules: Collection[AdapterModule], before: Calls) -> None:
    """Let ``modules`` have the samples that they had ``before``: of a block around this one."""
    keys, now = {id(module) for module in modules}, calls()
    samples = {key: names for key, names in now.samples.items() if key not in keys}
    samples |= {key: names for key, names in before.samples.items() if key in keys}
    turned = now.time_first - keys | before.time_first & keys
    store(replace(now, samples=samples, time_first=turned))
    for module in modules:
        module._traced_samples = samples.get(id(module))
        module._traced_time_first = id(module) in turned
