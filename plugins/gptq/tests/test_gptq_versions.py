"""Versions: the texts, which library is used, and the checkpoints that one reads wrong."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Callable, Iterator

import pytest
from quantlora_gptq.requires import CHECK, LIBRARIES, REQUIRES, wrong_reading
from torch import nn

from quantlora import BackendError, MissingLibraryError, Status, wrap
from quantlora.requirements import forget

from .gptq_checkpoint import Recipe
from .gptq_loading import HAS_AUTO_GPTQ, OLD_GPTQMODEL, needs_library

Install = Callable[..., None]


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> Iterator[Install]:
    """``installed(gptqmodel="7.6.0")``: what the metadata says, and nothing else is there."""

    def pretend(**versions: str) -> None:
        known = {name.replace("_", "-"): version for name, version in versions.items()}

        def version(name: str) -> str:
            if name not in known:
                raise importlib.metadata.PackageNotFoundError(name)
            return known[name]

        monkeypatch.setattr(importlib.metadata, "version", version)
        forget()

    yield pretend
    forget()


def test_an_old_auto_gptq_is_named_with_its_version(installed: Install) -> None:
    installed(auto_gptq="0.4.2")
    text = (
        "Found an incompatible version of auto-gptq. Found version 0.4.2, "
        "but only versions above 0.5.0 are supported"
    )
    with pytest.raises(ImportError, match=text):
        LIBRARIES["auto_gptq"].check().require()
    assert text in CHECK.run().reason


@pytest.mark.parametrize("versions", [{}, {"optimum": "1.23.3"}])
def test_gptqmodel_without_a_new_optimum_says_so(installed: Install, versions) -> None:
    installed(gptqmodel="7.6.0", **versions)
    text = "gptqmodel requires optimum version `1.24.0` or higher to be installed."
    with pytest.raises(ImportError) as error:
        LIBRARIES["gptqmodel"].check().require()
    assert text in str(error.value)
    assert CHECK.run().status is Status.UNAVAILABLE
    assert text in CHECK.run().reason


def test_gptqmodel_before_2_is_refused(installed: Install) -> None:
    installed(gptqmodel="1.9.0", optimum="1.24.0")
    with pytest.raises(MissingLibraryError, match=r"Found version 1\.9\.0.*2\.0\.0"):
        LIBRARIES["gptqmodel"].check().require()


def test_with_both_libraries_the_report_says_which_is_used_and_why(installed: Install) -> None:
    installed(gptqmodel="7.6.0", optimum="2.3.0", auto_gptq="0.7.1", transformers="4.57.6")
    verdict = CHECK.run()
    assert verdict.status is Status.READY
    assert "gptqmodel" in verdict.reason
    assert "0.7.1" in verdict.reason
    assert "Transformers and optimum load" in verdict.reason


def test_either_library_is_enough(installed: Install) -> None:
    installed(auto_gptq="0.7.1", transformers="4.57.6")
    assert REQUIRES.check().version == "0.7.1, 4.57.6"
    installed(gptqmodel="2.2.0", optimum="1.24.0")
    assert REQUIRES.check()


@pytest.mark.parametrize(
    ("auto_gptq", "reason"),
    [
        ("0.4.2", "Found an incompatible version of auto-gptq. Found version 0.4.2, "),
        ("0.7.1", "auto-gptq cannot be imported with transformers 5.23.0"),
    ],
)
def test_an_auto_gptq_that_does_not_fit_is_named_beside_a_good_gptqmodel(
    auto_gptq, reason, installed: Install
) -> None:
    installed(gptqmodel="7.6.0", optimum="2.3.0", auto_gptq=auto_gptq, transformers="5.23.0")
    verdict = CHECK.run()
    assert verdict.status is Status.READY
    assert reason in verdict.reason


def test_what_is_not_installed_is_not_named_beside_a_good_gptqmodel(installed: Install) -> None:
    installed(gptqmodel="7.6.0", optimum="2.3.0", transformers="5.23.0")
    assert CHECK.run().reason == ""


def test_auto_gptq_with_transformers_5_is_refused(installed: Install) -> None:
    installed(auto_gptq="0.7.1", transformers="5.23.0")
    assert "auto-gptq cannot be imported with transformers 5.23.0" in CHECK.run().reason


@pytest.mark.parametrize(
    ("library", "version", "stored_as", "wrong"),
    [
        ("gptqmodel", "2.0.0", "gptq", {2, 3, 4, 8}),
        ("gptqmodel", "2.0.0", "gptq_v2", set()),
        ("gptqmodel", "2.2.0", "gptq", {3}),
        ("gptqmodel", "5.8.0", "gptq", {3}),
        ("gptqmodel", "6.0.3", "gptq", {3}),
        ("gptqmodel", "7.0.0", "gptq", set()),
        ("gptqmodel", "7.6.0", "gptq", set()),
        ("auto_gptq", "0.7.1", "gptq", set()),
        ("auto_gptq", "0.7.1", "gptq_v2", {2, 3, 4, 8}),
    ],
)
def test_exactly_the_wrong_readings_are_known(library, version, stored_as, wrong) -> None:
    found = {b for b in (2, 3, 4, 8) if wrong_reading(library, version, stored_as, b)}
    assert found == wrong


@needs_library
@pytest.mark.skipif(not (HAS_AUTO_GPTQ or OLD_GPTQMODEL), reason="this version reads all right")
def test_a_checkpoint_that_this_version_reads_wrong_is_refused(load) -> None:
    recipe = Recipe(v2=True) if HAS_AUTO_GPTQ else Recipe(bits=3)
    with pytest.raises(BackendError, match=r"layers\.0\..* reads .-bit checkpoints .* wrong"):
        wrap(load(recipe), r=2)


@needs_library
@pytest.mark.skipif(not (HAS_AUTO_GPTQ or OLD_GPTQMODEL), reason="this version reads all right")
def test_the_other_checkpoints_are_not_refused(load) -> None:
    for recipe in (Recipe(), Recipe(bits=3) if HAS_AUTO_GPTQ else Recipe(bits=3, v2=True)):
        wrap(load(recipe), r=2)


@needs_library
def test_an_unsupported_version_stops_wrap_alone(load, installed: Install) -> None:
    model = load(Recipe())
    installed(auto_gptq="0.4.2", gptqmodel="1.9.0")
    with pytest.raises(MissingLibraryError, match="incompatible version"):
        wrap(model, r=2)
    wrap(nn.Sequential(nn.Linear(4, 4)), r=2)
