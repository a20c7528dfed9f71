"""Whatever ends a command, its user sees one message and an exit code, no traceback."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

import quantlora
from quantlora.cli import app, plugins_cmd
from quantlora.cli.frame import answered


@pytest.mark.parametrize(
    ("error", "code", "words"),
    [
        (KeyboardInterrupt(), 130, "interrupted."),
        (ValueError("torn [in] two"), 1, "ValueError: torn [in] two. Nobody has foreseen this"),
        (quantlora.ConfigError("too much"), 1, "error: too much"),
    ],
)
def test_an_error_is_one_message(error, code, words, monkeypatch):
    def fail() -> None:
        raise error

    monkeypatch.setattr(plugins_cmd, "plugin_rows", fail)
    result = CliRunner().invoke(app, ["plugins"])
    assert result.exit_code == code
    assert words in result.stderr
    assert "Traceback" not in result.output


def test_a_wrong_option_is_still_a_usage_error():
    assert CliRunner().invoke(app, ["plugins", "--jsn"]).exit_code == 2


def test_a_reader_of_a_pipe_that_has_gone_is_left_to_typer():
    with pytest.raises(BrokenPipeError), answered():
        raise BrokenPipeError


@pytest.mark.parametrize("raised", ["KeyboardInterrupt", "ImportError('initialization failed')"])
def test_ctrl_c_while_libraries_load_ends_with_130(raised, tmp_path, run_python):
    (tmp_path / "typer.py").write_text(
        "import os, signal\n"
        "try:\n    os.kill(os.getpid(), signal.SIGINT)\n    import time; time.sleep(5)\n"
        f"except KeyboardInterrupt:\n    raise {raised}\n"
    )
    done = run_python("-m", "quantlora", "plugins", path=[tmp_path], check=False)
    assert done.returncode == 130
    assert done.stderr.strip() == "interrupted."


@pytest.mark.parametrize(
    ("after", "command"),
    [
        ("raise ModuleNotFoundError('No module named x')", "plugins"),
        ("pass\nraise ModuleNotFoundError('No module named x')", "plugins"),
        ("pass\nraise ModuleNotFoundError('No module named x')", "env"),
    ],
)
def test_an_error_that_a_library_makes_of_ctrl_c_is_not_shown(after, command, tmp_path, run_python):
    (tmp_path / "loads.py").write_text(
        "import os, signal\n"
        "try:\n    os.kill(os.getpid(), signal.SIGINT)\n    import time; time.sleep(5)\n"
        f"except KeyboardInterrupt:\n    {after}\n"
    )
    start = (
        "def load(*_):\n    import loads\n"
        "from quantlora.cli import plugins_cmd\nfrom quantlora.env import command\n"
        "plugins_cmd.plugin_rows = command.make_report = load\n"
        f"import sys; sys.argv = ['quantlora', '{command}']\n"
        "from quantlora.__main__ import main\nmain()"
    )
    done = run_python("-c", start, path=[tmp_path], check=False)
    assert (done.returncode, done.stderr.strip()) == (130, "interrupted.")


@pytest.mark.parametrize("model", ["a/path", Path("a/path"), {}, None])
@pytest.mark.parametrize("what", ["wrap", "load_adapter"])
def test_a_path_is_no_model(what, model):
    arguments = (model,) if what == "wrap" else (model, "adapter")
    with pytest.raises(quantlora.ConfigError, match=f"{what} takes a model that is loaded"):
        getattr(quantlora, what)(*arguments)
