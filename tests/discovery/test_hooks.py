"""Each hook, through the plugin in ``tests/data/good``: what it offers can be used by its name."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

GOOD = ["good"]
CLI = "from quantlora.cli import app; app()"

PRELUDE = """
import quantlora, torch
from torch import nn
model = nn.Sequential(nn.Linear(8, 8, bias=False))
x = torch.ones(1, 8)
before = model(x).detach()
"""


@pytest.fixture
def with_good_plugin(run_python):
    """Run code after `PRELUDE` with the good plugin installed; its output."""

    def run(code: str) -> str:
        return run_python("-c", PRELUDE + code, path=GOOD).stdout.strip()

    return run


def test_quantizers_become_backends(with_good_plugin):
    code = """
quantlora.wrap(model, backend="halved", r=2)
model(x).sum().backward()
same = torch.equal(model(x), before)
print(type(model[0].base_layer).__name__, same, model[0].lora_B["default"].weight.grad is not None)
"""
    assert with_good_plugin(code) == "HalvedLinear True True"


def test_layer_wrappers_become_variants(with_good_plugin):
    code = """
quantlora.wrap(model, use_variant="negated", init_lora_weights="ones", r=2, lora_alpha=2)
print(model[0].variant, bool(torch.allclose(model(x), before - 2 * 8)))
"""
    assert with_good_plugin(code) == "negated True"


def test_initializers_become_first_values(with_good_plugin):
    code = """
quantlora.wrap(model, init_lora_weights="ones", r=2)
print(set(model[0].lora_A["default"].weight.flatten().tolist()))
"""
    assert with_good_plugin(code) == "{1.0}"


def test_loaders_become_what_load_asks(with_good_plugin):
    assert with_good_plugin("print(quantlora.load('a.good').in_features)") == "6"


def test_checks_become_verdicts(run_python):
    done = run_python("-m", "quantlora.env", "--json", "--backend", "halved", path=GOOD)
    (verdict,) = json.loads(done.stdout)["backends"]
    assert (verdict["plugin"], verdict["status"]) == ("good", "READY")


def test_commands_become_commands(run_python):
    done = run_python("-c", CLI, "say-it", "yes", "--times", "2", path=GOOD)
    assert done.stdout.strip() == "yes yes"


def test_commands_are_listed_with_ours(run_python):
    text = run_python("-c", CLI, "--help", path=GOOD).stdout
    assert "say-it" in text
    assert "finetune" in text


def test_an_adapter_of_a_plugins_variant_comes_back_as_that_variant(with_good_plugin, tmp_path):
    code = f"""
quantlora.wrap(model, use_variant="negated", init_lora_weights="ones", r=2)
quantlora.save_adapter(model, {str(tmp_path)!r})
fresh = nn.Sequential(nn.Linear(8, 8, bias=False))
fresh[0].weight = model[0].base_layer.weight
quantlora.load_adapter(fresh, {str(tmp_path)!r})
print(fresh[0].variant, torch.equal(fresh(x), model(x)))
"""
    assert with_good_plugin(code) == "negated True"


def test_a_hook_of_a_later_version_may_be_marked_optional(run_python, tmp_path: Path):
    info = tmp_path / "later-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: later\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[quantlora]\nlater = later_plugin\n")
    (tmp_path / "later_plugin.py").write_text(
        "from quantlora.hookspecs import hookimpl\n"
        "@hookimpl(optionalhook=True)\ndef quantlora_exporters():\n    return []\n"
    )
    code = "from quantlora.discovery.plugins import load_plugins; print(load_plugins().disabled)"
    assert run_python("-c", code, path=[tmp_path]).stdout == "[]\n"
