"""A faulty plugin is disabled with its reason; nobody else notices. Real entry points only."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import pytest

PROBE = str(Path(__file__).with_name("probe.py"))

#: Folder in ``tests/data`` -> what the reason says.
FAULTS = {
    "import_error": "it cannot be imported: ModuleNotFoundError: No module named "
    "'a_library_that_is_not_there'.",
    "exits": "it cannot be imported: SystemExit: 3.",
    "panics": "it cannot be imported: PanicException: called `Option::unwrap()` on a `None` value.",
    "hook_panics": "quantlora_quantizers() failed: PanicException: index out of bounds.",
    "no_text": "it cannot be imported: SilentError: SilentError.",
    "no_repr": "quantlora_quantizers() must return Quantizer objects, got an object of Shy.",
    "offer_raises": "what it offers cannot be read: RuntimeError: ask later.",
    "unknown_hook": "unknown hook 'quantlora_quantisers'; the hooks are quantlora_quantizers, "
    "quantlora_layer_wrappers, quantlora_initializers, quantlora_loaders, quantlora_checks, "
    "quantlora_commands.",
    "wrong_arguments": "Argument(s) {'model'} are declared in the hookimpl but can not be found",
    "hook_raises": "quantlora_quantizers() failed: RuntimeError: the table of formats is empty.",
    "wrong_result": "quantlora_initializers() failed: TypeError: it must return a list of objects, "
    "got int.",
    "wrong_items": "quantlora_layer_wrappers() must return subclasses of LoraLayer, got 'lora'.",
    "wrong_check": "quantlora_checks() must return Check objects, got {'backend': 'wrong_check'}.",
    "name_conflict": "the name 'float' is taken by quantlora itself: choose another one.",
    "variant_conflict": "the name 'lora' is taken by quantlora itself: choose another one.",
    "second_halved": "the name 'halved' is taken by plugin 'good' of good; QUANTLORA_DISABLE=good "
    "makes room for this one.",
    "reserved_name": "the name 'auto' is reserved: choose another one.",
    "api_too_new": "it is written for plugin API 99, this quantlora has 1: upgrade quantlora.",
    "api_not_a_number": "its QUANTLORA_API must be an integer, got 'newest'.",
    "no_hooks": "it implements no hook: mark its functions with quantlora.hookimpl.",
    "same_entry_name": "another plugin is named 'good': uninstall one of the two",
}

#: Faults that no call but the report's brings to light; the report itself says so.
SILENT = ("wrong_check",)

#: One of each kind of fault; the others, a process each, are tried in the second stage.
FAST = (
    "import_error",
    "wrong_result",
    "api_too_new",
)

Found = dict[str, Any]


@pytest.fixture(scope="module")
def probe(run_python):
    """What `probe.py` finds with some folders of ``tests/data`` on its path."""

    @cache
    def run(*folders: str, **env: str) -> Found:
        return json.loads(run_python(PROBE, path=folders, **env).stdout)

    return run


@pytest.fixture(
    params=[pytest.param(name, marks=[] if name in FAST else [pytest.mark.slow]) for name in FAULTS]
)
def fault(request) -> str:
    return request.param


@pytest.fixture
def found(probe, fault) -> Found:
    """With the good plugin and one faulty one."""
    return probe("good", fault)


def disabled(found: Found) -> dict[str, str]:
    """Reason by distribution, for the plugins that were disabled."""
    return {one["distribution"]: one["error"] for one in found["plugins"] if one["error"]}


def test_only_the_faulty_plugin_is_disabled_and_its_reason_listed(found, fault):
    assert list(disabled(found)) == [fault]
    assert FAULTS[fault] in disabled(found)[fault]


def test_plain_lora_and_the_other_plugin_work_on(found):
    assert found["plain"] is True
    assert found["good"] is True


def test_there_is_one_warning_and_it_names_plugin_and_remedy(found, fault):
    texts = [text for text, _ in found["warnings"]]
    assert len(texts) == (0 if fault in SILENT else 1)
    for text in texts:
        assert f"from {fault} 1.0) is disabled: " in text
        assert FAULTS[fault] in text
        assert "QUANTLORA_DISABLE=" in text


def test_the_warning_points_at_the_users_line(found):
    assert {Path(file).name for _, file in found["warnings"]} <= {"probe.py"}


def test_the_reason_is_named_again_in_errors_it_could_explain(found, fault):
    if fault in SILENT:
        pytest.skip("seen by the report only")
    assert FAULTS[fault] in found["unknown_backend"]
    assert FAULTS[fault] in found["unknown_layer"]


def test_the_report_lists_the_reason_and_stays_ready(found, fault):
    reasons = {one["distribution"]: one["error"] for one in found["report"]["plugins"]}
    assert FAULTS[fault] in reasons[fault]
    statuses = {one["backend"]: one["status"] for one in found["report"]["backends"]}
    assert statuses["float"] == statuses["halved"] == "READY"


def test_all_faulty_plugins_together_disturb_nobody(probe):
    found = probe("good", *FAULTS)
    assert found["plain"] is True
    assert found["good"] is True
    assert set(disabled(found)) == set(FAULTS)


MATCHES = "fragile.matches() failed: AttributeError: 'Linear' object has no attribute 'qweight'."


def test_a_plugin_whose_matches_raises_is_left_out_of_that_layer_only(probe):
    found = probe("good", "matches_raises")
    assert disabled(found) == {}
    assert found["plain"] is True
    assert "Packed" in found["unknown_layer"]
    assert "is disabled for layers of __main__.Packed: " + MATCHES in found["unknown_layer"]
    texts = [text for text, _ in found["warnings"]]
    assert len(texts) == len({text.partition(":")[0] for text in texts})
    assert all(MATCHES in text for text in texts)


def test_the_same_plugin_takes_the_layers_that_it_can_look_at(monkeypatch):
    from torch import nn

    from quantlora.discovery.entry_points import PluginRecord
    from quantlora.discovery.offers import QUANTIZERS, Offer
    from quantlora.discovery.registration import registry

    class Bilinears(type(registry().quantizers["float"])):
        name, module, is_float = "bilinears", "torch", False

        def matches(self, layer):
            return layer.in1_features > 0

    offer = Offer(PluginRecord("b", "b", "1", "b"), QUANTIZERS, "bilinears", Bilinears())
    monkeypatch.setattr(registry(), "offers", [*registry().offers, offer])
    monkeypatch.setitem(registry().quantizers, "bilinears", offer.item)
    with pytest.warns(UserWarning, match="disabled for layers of .*Linear with weight Parameter"):
        assert offer.item not in registry().candidates(nn.Linear(2, 2))
    assert registry().candidates(nn.Bilinear(2, 2, 2)) == [offer.item]


def test_a_disabled_plugin_is_neither_loaded_nor_warned_about(probe):
    found = probe("good", "import_error", QUANTLORA_DISABLE="import-error")
    assert disabled(found) == {"import_error": "disabled by QUANTLORA_DISABLE."}
    assert found["warnings"] == []


def test_disabling_the_holder_of_a_name_makes_room_for_the_other(run_python):
    code = "import quantlora; print(type(quantlora.registry().quantizers['halved']).__name__)"
    done = run_python("-c", code, path=["good", "second_halved"], QUANTLORA_DISABLE="x, good")
    assert done.stdout == "Second\n"


@pytest.mark.slow
def test_trace_prints_each_hook_call_with_its_plugin(run_python):
    code = "import quantlora; quantlora.registry()"
    lines = run_python("-c", code, path=["good"], QUANTLORA_TRACE="1").stderr
    assert "good:   quantlora_quantizers [hook]" in lines
    assert "builtin:   quantlora_initializers [hook]" in lines


def test_a_distribution_with_unreadable_entry_points_is_disabled_in_the_report(run_python):
    # Not through the probe: `import torch` itself fails then, on Python 3.10 and 3.11.
    done = run_python("-m", "quantlora.env", "--json", path=["good", "broken_entry_points"])
    plugins = {one["name"]: one["error"] for one in json.loads(done.stdout)["plugins"]}
    assert plugins["good"] == ""
    assert "its entry_points.txt cannot be read" in plugins["broken_entry_points"]


@pytest.mark.slow
@pytest.mark.parametrize("fault", ["import_error", "panics", "hook_raises"])
def test_under_warnings_as_errors_wrap_works_on_and_the_reason_is_said(fault, run_python):
    code = (
        "import torch, quantlora;"
        "quantlora.wrap(torch.nn.Sequential(torch.nn.Linear(8, 8)), r=2); print('wrapped')"
    )
    done = run_python("-W", "error::UserWarning", "-c", code, path=[fault])
    assert done.stdout == "wrapped\n"
    assert "is disabled" in done.stderr
    assert FAULTS[fault] in done.stderr


def test_the_user_s_interrupt_is_no_fault_of_a_plugin(tmp_path):
    from quantlora.discovery.entry_points import kept_apart

    blamed = []
    with pytest.raises(KeyboardInterrupt), kept_apart(blamed.append):
        raise KeyboardInterrupt
    assert blamed == []


@pytest.mark.parametrize(
    "command",
    [
        ("quantlora", "plugins"),
        pytest.param(("quantlora.env",), marks=pytest.mark.slow),
        pytest.param(("quantlora", "env"), marks=pytest.mark.slow),
    ],
    ids=" ".join,
)
def test_a_plugin_that_prints_does_not_get_into_the_json(command, run_python):
    done = run_python("-m", *command, "--json", path=["prints"])
    found = {one["distribution"]: one["error"] for one in json.loads(done.stdout)["plugins"]}
    assert found["prints"] == ""
    for where in ("in Python", "in C", "elsewhere"):
        assert f"import {where}" in done.stderr
