"""FP8 checkpoints stay FP8 where Transformers, which has no kernel there, would dequantize them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from typing import Any, ClassVar

from torch import nn

from quantlora import LoadRequest, ModelLoader, pretrained
from quantlora_fp8.requires import TRANSFORMERS

_KEEP: ContextVar[bool] = ContextVar("keep", default=False)


class Fp8Loader(ModelLoader):
    """A folder or hub id whose config says ``"quant_method": "fp8"``, for ``backend="auto"``."""

    name: ClassVar[str] = "fp8"
    requires = (TRANSFORMERS,)

    def claims(self, request: LoadRequest) -> bool:
        if request.backend not in ("auto", "fp8") or "gguf_file" in request.arguments:
            return False
        return request.is_packed("fp8")

    def load(self, request: LoadRequest) -> nn.Module:
        kind, source = request.transformers_class, request.model_id_or_path
        arguments = dict(request.arguments)
        _register()
        with _kept():
            return pretrained(source, lambda: kind.from_pretrained(source, **arguments))  # type: ignore[no-any-return]


@contextmanager
def _kept() -> Iterator[None]:
    token = _KEEP.set(True)
    try:
        yield
    finally:
        _KEEP.reset(token)


@cache
def _register() -> None:
    """Put a quantizer in Transformers' table that does as theirs, except inside `_kept`."""
    from transformers.quantizers.auto import AUTO_QUANTIZER_MAPPING

    theirs: Any = AUTO_QUANTIZER_MAPPING["fp8"]

    class KeptFp8(theirs):  # type: ignore[misc]
        def validate_environment(self, *args: Any, **kwargs: Any) -> None:
            if kept := _KEEP.get():
                self.quantization_config.dequantize = True  # theirs would say that it will
            super().validate_environment(*args, **kwargs)
            if kept:
                self.quantization_config.dequantize = False

    mapping: Any = AUTO_QUANTIZER_MAPPING
    mapping["fp8"] = KeptFp8
