"""``--deep``: what only running a backend can tell, and a crash that ends nothing."""

from __future__ import annotations

import json
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from quantlora.checks import Check
from quantlora.discovery.registration import registry
from quantlora.env import deep
from quantlora.env.exercise import steps
from quantlora.env.verdicts import backend_checks
from quantlora.operations.catalogue import OPERATIONS


@pytest.fixture
def tried(run_python):
    """The verdict on one backend of the crashing plugin, by ``--deep``."""

    def run(backend: str, path: str = "crashing") -> dict:
        done = run_python(
            *("-m", "quantlora.env", "--deep", "--json", "--backend", backend),
            path=[path],
            check=False,
        )
        (verdict,) = json.loads(done.stdout)["backends"]
        return verdict

    return run


def slow(*values: str) -> Any:
    """A process more, in the second stage."""
    return pytest.param(*values, marks=pytest.mark.slow)


@pytest.mark.parametrize(
    ("backend", "step", "error"),
    [
        ("segfault", "forward", "ended by SIGSEGV: a native library crashed"),
        slow("leaves", "quantize", "ended with exit code 7"),
        slow("raises", "forward", "RuntimeError: CUDA error: no kernel image is available"),
        ("drifts", "forward", "the output differs from the float64 reference"),
    ],
)
def test_a_backend_that_fails_is_unavailable_with_the_step(tried, backend, step, error):
    verdict = tried(backend)
    assert verdict["status"] == "UNAVAILABLE"
    assert verdict["reason"].startswith(f"--deep: step {step!r} failed: ")
    assert error in verdict["reason"]
    assert verdict["deep"][-1]["ok"] is False


@pytest.mark.parametrize("backend", ["halved", slow("negated"), slow("ones")])
def test_a_strangers_offer_that_works_is_ready_with_the_steps_it_took(tried, backend):
    """A format, a variant that no flag chooses, an initializer: each by the name of its check."""
    verdict = tried(backend, path="good")
    assert verdict["status"] == "READY"
    assert [step["name"] for step in verdict["deep"]] == ["quantize", *OPERATIONS]
    assert all(step["ok"] for step in verdict["deep"])


@pytest.mark.slow
def test_a_backend_that_hangs_is_ended(monkeypatch):
    monkeypatch.setattr(deep, "_environment", lambda: {"PYTHONPATH": "tests/data/crashing"})
    *_, last = deep.run_deep("hangs", patience=20)
    assert last == deep.Step("quantize", False, 0.0, "it did not end within 20 s")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("backend", "works"), [("leaves_one", True), ("leaves_one_and_hangs", False)]
)
def test_a_process_left_behind_holds_nobody_and_is_ended(backend, works, monkeypatch):
    monkeypatch.setattr(deep, "_environment", lambda: {"PYTHONPATH": "tests/data/crashing"})
    start = time.monotonic()
    steps = deep.run_deep(backend, patience=25)
    assert time.monotonic() - start < 40
    assert steps[-1].ok is works
    while _sleepers():  # killed, and on their way out
        assert time.monotonic() - start < 60
        time.sleep(0.1)


def _sleepers() -> list[str]:
    """Processes of ours that the backend has left behind."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with suppress(OSError):
            found.append(path.read_bytes().decode())
    return [text for text in found if "time.sleep(60)" in text]


def test_a_line_that_broke_off_is_no_step():
    assert deep._steps('{"begin": "quantize"}\n{"name": "quan', "ended") == (
        deep.Step("quantize", False, 0.0, "ended"),
    )


def test_no_token_reaches_the_process_that_runs_a_backend(monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "secret")
    monkeypatch.setenv("HUGGING_FACE_HUB_TOKEN", "secret")
    assert "secret" not in deep._environment().values()


def test_every_format_is_tried():
    offered = {offer.check.backend for offer in backend_checks(registry().plugins)}
    assert registry().quantizers.keys() <= offered


def test_experts_are_tried_where_a_format_packs_them():
    names = {name: [step for step, _ in steps(Check(name))] for name in ("mxfp4", "gguf")}
    assert names["gguf"] == ["quantize", *OPERATIONS]
    assert names["mxfp4"] == [*names["gguf"], "experts"]


@pytest.mark.slow
def test_every_backend_installed_here_works(run_python):
    done = run_python("-m", "quantlora.env", "--deep", "--json")
    verdicts = json.loads(done.stdout)["backends"]
    tried = {one["backend"]: one["reason"] for one in verdicts if one["deep"]}
    assert "float" in tried
    assert not any(reason.startswith("--deep") for reason in tried.values()), tried
