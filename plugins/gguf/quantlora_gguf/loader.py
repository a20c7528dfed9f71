"""GGUF files for `quantlora.load`."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

from torch import nn

from quantlora import (
    BackendError,
    LoadRequest,
    ModelLoader,
    Requirement,
    StoredModel,
    pretrained,
)
from quantlora_gguf.requires import GGUF

#: Transformers' loader takes tensors that are read one by one since then.
_TRANSFORMERS = Requirement("transformers>=5.0")


class GgufLoader(ModelLoader):
    """A file by its first bytes, or ``gguf_file=`` in a folder or on the hub."""

    name: ClassVar[str] = "gguf"
    requires = (GGUF, _TRANSFORMERS, Requirement("accelerate>=1.1"))

    def claims(self, request: LoadRequest) -> bool:
        return "gguf_file" in request.arguments or _is_gguf(Path(request.source).expanduser())

    def load(self, request: LoadRequest) -> nn.Module:
        from quantlora_gguf.load_model import load_gguf

        if request.backend not in ("auto", "gguf") or request.options:
            raise BackendError(
                f"{request.source} is packed already, as a GGUF file: load it with backend='auto' "
                f"and no quantize_options, or a float checkpoint of the model."
            )
        arguments = dict(request.arguments)
        path = _file(request.source, arguments.pop("gguf_file", None))
        model: nn.Module = load_gguf(path, model_class=request.model_class, **arguments)
        return model

    def describe(self, request: LoadRequest) -> StoredModel:
        from quantlora_gguf.describe import described

        return described(_file(request.source, request.arguments.get("gguf_file")))


def _is_gguf(path: Path) -> bool:
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return file.read(4) == b"GGUF"


def _file(source: str, name: str | None) -> Path:
    if name is None:
        return Path(source).expanduser().resolve()
    from transformers.utils.hub import cached_file

    return Path(pretrained(source, lambda: str(cached_file(source, name))))
