"""A plugin of pytest that lets PEFT's own tests run over quantlora: names in place, LoRA only.

The names are put into PEFT's modules before its tests are imported, in this process alone.
"""

from __future__ import annotations

import contextlib
import inspect
import json
import linecache
import os
import signal
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import peft
import peft.tuners.lora
import peft.tuners.tuners_utils
import peft.utils
import peft.utils.hotswap
import pytest

import quantlora
from quantlora.adapters.modules_to_save import ModulesToSaveWrapper
from tests.peft_suite import peft_model
from tests.peft_suite.layer_names import put_layer_names

#: Where the outcomes are written, one JSON object a line.
OUTCOMES = "PEFT_SUITE_OUTCOMES"
#: Seconds that one test may take.
PATIENCE = 30
_FUNCTIONS = (
    "PeftModel", "get_peft_model", "inject_adapter_in_model", "get_peft_model_state_dict",
    "set_peft_model_state_dict",
)  # fmt: skip


def put_names() -> None:
    """PEFT's names for models, layers and functions lead to quantlora."""
    for name in _FUNCTIONS:
        setattr(peft, name, getattr(peft_model, name))
    for name in ("hotswap_adapter", "prepare_model_for_compiled_hotswap"):
        setattr(peft.utils.hotswap, name, getattr(peft_model, name))
    put_layer_names()
    for module in (peft.tuners.lora, peft.tuners.lora.layer):
        module.LoraLayer = quantlora.LoraLayer
    peft.tuners.tuners_utils.BaseTunerLayer = quantlora.LoraLayer
    for module in (peft.utils, peft.utils.other):
        module.ModulesToSaveWrapper = ModulesToSaveWrapper
        module.AuxiliaryTrainingWrapper = ModulesToSaveWrapper
    if "diffusers" not in sys.modules:
        with contextlib.suppress(ImportError):
            import diffusers  # noqa: F401
    sys.modules.setdefault("diffusers", _absent_diffusers())


def _absent_diffusers() -> Any:
    """PEFT's common tests import one name of it, which no LoRA test here calls."""
    module = types.ModuleType("diffusers")
    module.StableDiffusionPipeline = object  # type: ignore[attr-defined]
    return module


put_names()


@contextlib.contextmanager
def _stay_offline(model_id: str) -> Iterator[None]:
    yield


def is_lora(item: pytest.Item) -> bool:
    """Whether a test is about LoRA: by its parameters, else by what its text names."""
    params = getattr(getattr(item, "callspec", None), "params", {})
    classes = [one for one in _flat(params.values()) if inspect.isclass(one)]
    configs = [one for one in classes if one.__name__.endswith("Config")]
    if configs:
        return all(one is peft.LoraConfig for one in configs)
    given = [one for one in _flat(params.values()) if isinstance(one, peft.PeftConfig)]
    if given:
        return all(type(one) is peft.LoraConfig for one in given)
    text = inspect.getsource(item.function)  # type: ignore[attr-defined]
    others = [name for name in dir(peft) if name.endswith("Config") and name != "LoraConfig"]
    return "LoraConfig" in text and not any(f"{name}(" in text for name in others)


def _flat(values: Any) -> Iterator[Any]:
    for value in values:
        if isinstance(value, (list, tuple)):
            yield from _flat(value)
        else:
            yield value


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items[:] = [item for item in items if is_lora(item)]
    for module in {item.module for item in items}:  # type: ignore[attr-defined]
        if hasattr(module, "hub_online_once"):
            module.hub_online_once = _stay_offline
    common = sys.modules.get("peft_tests.testing_common")
    if common is not None:
        common.hub_online_once = _stay_offline  # type: ignore[attr-defined]


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Any:
    """No test may hold up the others: what takes longer has failed."""
    signal.signal(signal.SIGALRM, _too_long)
    signal.alarm(PATIENCE)
    try:
        return (yield)
    finally:
        signal.alarm(0)


def _too_long(*_: Any) -> None:
    raise TimeoutError(f"no end within {PATIENCE} s")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Any:
    report = yield
    if report.when == "call" or report.outcome == "skipped" or report.failed:
        _note(item, call, report.outcome)
    return report


def _note(item: pytest.Item, call: pytest.CallInfo[None], outcome: str) -> None:
    error = call.excinfo.value if call.excinfo is not None else None
    text = " ".join(str(error).split()) if error is not None else ""
    row = {
        "test": f"{item.path.name}::{item.nodeid.partition('::')[2]}",
        "outcome": outcome,
        "kind": type(error).__name__ if error is not None else "",
        "ours": isinstance(error, quantlora.QuantloraError),
        "text": text[:400],
        "line": _line(call),
    }
    with Path(os.environ[OUTCOMES]).open("a") as file:
        file.write(json.dumps(row) + "\n")


def _line(call: pytest.CallInfo[None]) -> str:
    """The line of the test that failed."""
    if call.excinfo is None:
        return ""
    entries = [one for one in call.excinfo.traceback if "peft_tests" in str(one.path)]
    if not entries:
        return ""
    # not `statement`, which parses the whole file for each failure
    return linecache.getline(str(entries[-1].path), entries[-1].lineno + 1).strip()[:120]
