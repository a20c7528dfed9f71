"""The library itself: missing, too old or broken, it harms nobody else and says what to do."""

from __future__ import annotations

import subprocess
import sys
import types
import warnings
from collections.abc import Iterator

import bitsandbytes as bnb
import pytest
from quantlora_bnb.plugin import quantlora_checks
from quantlora_bnb.requires import REQUIRES
from torch import nn

import quantlora
from quantlora import LayerError, MissingLibraryError, Quantizer
from quantlora.checks import Status


@pytest.fixture
def fresh_registry() -> Iterator[None]:
    """One that may lose a plugin."""
    quantlora.forget_plugins()
    yield
    quantlora.forget_plugins()


def test_loading_the_entry_point_imports_neither_torch_nor_bitsandbytes() -> None:
    code = (
        "import sys, quantlora_bnb.plugin; quantlora_bnb.plugin.quantlora_checks();"
        "print([m for m in ('torch', 'bitsandbytes', 'transformers') if m in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.stdout.strip() == "[]", result.stderr


def test_building_the_registry_does_not_import_bitsandbytes() -> None:
    code = (
        "import sys, quantlora, torch; quantlora.wrap(torch.nn.Sequential(torch.nn.Linear(4, 4)),"
        "target_modules=['0'], r=2); print('bitsandbytes' in sys.modules)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.stdout.strip() == "False", result.stderr


def test_the_checks_share_the_requirements() -> None:
    checks = {check.backend: check for check in quantlora_checks()}
    assert set(checks) == {"bitsandbytes_4bit", "bitsandbytes_8bit"}
    for name, check in checks.items():
        assert check.requires is quantlora.registry().quantizers[name].requires is REQUIRES
        assert check.run().status is Status.READY


def test_a_library_without_linear4bit_is_named_with_the_pip_line(
    four_bit: Quantizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(bnb.nn, "Linear4bit")
    with pytest.raises(MissingLibraryError, match=r"no nn\.Linear4bit") as caught:
        quantlora.wrap(
            nn.Sequential(nn.Linear(64, 64)), backend="bitsandbytes_4bit", r=4, target_modules=["0"]
        )
    assert "pip install" in str(caught.value)
    assert bnb.__file__ in str(caught.value)


def test_a_library_that_is_an_empty_shell_is_named(
    four_bit: Quantizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is left where the import of a broken installation was swallowed."""
    shell = types.ModuleType("bitsandbytes")
    shell.__file__ = "/somewhere/bitsandbytes/__init__.py"
    monkeypatch.setitem(sys.modules, "bitsandbytes", shell)
    with pytest.raises(MissingLibraryError, match="of unknown version"):
        four_bit.layer_types()


@pytest.mark.usefixtures("fresh_registry")
def test_it_does_not_matter_to_other_layers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(bnb.nn, "Linear4bit")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model = quantlora.wrap(nn.Sequential(nn.Linear(64, 64)), r=4, target_modules=["0"])
    assert model[0].quantizer.name == "float"


@pytest.mark.usefixtures("fresh_registry")
def test_a_layer_of_such_a_library_gets_the_reason(
    four_bit: Quantizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    layer = four_bit.quantize(nn.Linear(64, 64))
    quantlora.forget_plugins()
    monkeypatch.delattr(bnb.nn, "Linear4bit")
    with (
        pytest.warns(quantlora.PluginWarning, match=r"no nn\.Linear4bit"),
        pytest.raises(LayerError, match=r"(?s)disabled.*pip install"),
    ):
        quantlora.wrap(nn.Sequential(layer), r=4, target_modules=["0"])


@pytest.mark.parametrize("version", ["0.41.1", "0.46.1"])
def test_an_old_version_is_refused_with_the_pip_line(
    version: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = REQUIRES[0]._found(version)
    assert not found
    assert found.fix == 'pip install "bitsandbytes>=0.47"'
    assert version in found.reason


def test_layers_are_known_by_class_not_by_flags_of_the_model(four_bit: Quantizer) -> None:
    """PEFT asks ``model.is_loaded_in_4bit``; a model without that flag is none of its business."""
    model = nn.Sequential(four_bit.quantize(nn.Linear(64, 64)), nn.Linear(64, 64))
    model.is_loaded_in_4bit = False
    quantlora.wrap(model, r=4, target_modules=["0", "1"])
    assert [layer.quantizer.name for layer in model] == ["bitsandbytes_4bit", "float"]


@pytest.mark.parametrize("name", ["LinearNF4", "LinearFP4"])
def test_upstreams_subclasses_are_known(four_bit: Quantizer, name: str) -> None:
    assert four_bit.matches(getattr(bnb.nn, name)(64, 64).to("cpu"))


def test_quantizing_in_a_fresh_process_prints_nothing() -> None:
    """Upstream asks for an inference kernel when it is imported on some CPUs."""
    code = (
        "import quantlora, torch; quantlora.wrap(torch.nn.Sequential(torch.nn.Linear(64, 64)),"
        "backend='bitsandbytes_4bit', target_modules=['0'], r=2)"
    )
    command = [sys.executable, "-W", "ignore", "-c", code]
    result = subprocess.run(command, capture_output=True, text=True)
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")
