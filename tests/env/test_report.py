"""The report's verdicts, forms and exit codes, through the real command."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest
from typer.testing import CliRunner

from quantlora.cli import app
from quantlora.env import command

SECRET = "hf_thisvaluemustnotappear"


@pytest.fixture
def env(run_python):
    """Run ``python -m quantlora.env`` with the plugins of some folders of ``tests/data``."""

    def run(*arguments: str, path=("checks",), **variables: str):
        return run_python("-m", "quantlora.env", *arguments, path=path, check=False, **variables)

    return run


@pytest.fixture
def verdicts(env) -> dict[str, dict[str, Any]]:
    found = json.loads(env("--json").stdout)
    return {one["backend"]: one for one in found["backends"]}


def test_a_backend_whose_library_is_here_is_ready_with_its_version(verdicts):
    assert verdicts["fine"]["status"] == "READY"
    assert verdicts["fine"]["version"]
    assert verdicts["float"]["status"] == "READY"


def test_a_backend_that_works_at_a_loss_is_degraded_with_reason_and_fix(verdicts):
    assert verdicts["slow"]["status"] == "DEGRADED"
    assert verdicts["slow"]["reason"] == "every product runs on one core"
    assert verdicts["slow"]["fix"] == "pip install fastlib"


def test_a_backend_names_all_that_is_missing_and_each_command(verdicts):
    assert verdicts["missing"]["status"] == "UNAVAILABLE"
    assert verdicts["missing"]["reason"] == "lib-a is not installed. lib-b is not installed."
    assert verdicts["missing"]["fix"] == 'pip install "lib-a>=1"\nconda install lib-b'


def test_a_check_that_raises_is_a_verdict(verdicts):
    assert verdicts["raising"]["status"] == "UNAVAILABLE"
    assert "OSError: the table of devices is gone" in verdicts["raising"]["reason"]
    assert verdicts["raising"]["plugin"] == "checks"


@pytest.mark.parametrize(
    ("backend", "code"),
    [("fine", 0), ("slow", 0), ("missing", 1), ("raising", 1), ("finne", 1)],
)
def test_the_exit_code_is_that_of_the_backend_asked_for(env, backend, code):
    assert env("--backend", backend).returncode == code


def test_an_unknown_backend_gets_near_names(env):
    text = env("--backend", "finne", COLUMNS="200").stdout
    assert "unknown backend 'finne'. Did you mean 'fine'?" in text


def test_without_a_usable_backend_the_exit_code_is_1(env, tmp_path):
    (tmp_path / "torch-1.0.dist-info").mkdir()
    (tmp_path / "torch-1.0.dist-info" / "METADATA").write_text("Name: torch\nVersion: 1.0\n")
    done = env("--backend", "float", path=[tmp_path])
    assert done.returncode == 1
    assert 'pip install "torch>=2.5"' in done.stdout


@pytest.mark.parametrize("asked", [False, True])
def test_a_failing_report_is_one_line_and_exit_code_2(asked, monkeypatch):
    def fail(*arguments: object) -> None:
        raise ZeroDivisionError("the tool\nitself")

    monkeypatch.setattr(command, "make_report", fail)
    monkeypatch.setenv("QUANTLORA_TRACEBACK", "1" if asked else "")
    done = CliRunner().invoke(app, ["env"])
    assert done.exit_code == 2
    assert ("Traceback" in done.stderr) == asked
    *_, last = done.stderr.splitlines()
    assert "the report failed" in last
    assert "ZeroDivisionError: the tool itself." in last
    assert "please report it, with what QUANTLORA_TRACEBACK=1 shows" in last


def test_the_report_takes_less_than_two_seconds(env):
    def seconds() -> float:
        start = time.perf_counter()
        env()
        return time.perf_counter() - start

    assert min(seconds() for _ in range(3)) < 2


@pytest.mark.parametrize("form", [(), ("--json",), ("--markdown",), ("--deep", "--backend=float")])
def test_the_token_never_appears(env, form):
    done = env(*form, path=["good"], HF_TOKEN=SECRET, HUGGING_FACE_HUB_TOKEN=SECRET)
    assert SECRET not in done.stdout + done.stderr
    assert "HF_TOKEN" in done.stdout


def test_commands_are_printed_whole_however_narrow_the_terminal(env):
    text = env(COLUMNS="40").stdout
    assert 'pip install "lib-a>=1"\nconda install lib-b\n' in text


def test_markdown_has_tables_that_a_forge_renders(env):
    text = env("--markdown").stdout
    assert text.startswith("<details>\n<summary>quantlora environment: usable here: ")
    rows = [line for line in text.splitlines() if line.startswith("| ")]
    assert "| backend | verdict | version | why |" in rows
    assert any(row.startswith("| missing | UNAVAILABLE |") for row in rows)
    assert '- missing: `pip install "lib-a>=1"`' in text


def test_quantlora_env_is_the_same_command(env):
    done = CliRunner().invoke(app, ["env", "--json", "--backend", "float"])
    module = json.loads(env("--json", "--backend", "float", path=()).stdout)
    assert json.loads(done.stdout)["backends"] == module["backends"]
