"""FP8 folders stay FP8 where Transformers, which has no kernel there, would dequantize them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from pathlib import Path
from typing import Any, ClassVar

from torch import nn

from quantlora import LoadRequest, ModelLoader, pretrained
from quantlora_fp8.requires import TRANSFORMERS

_KEEP: ContextVar[bool] = ContextVar("keep", default=False)


class Fp8Loader(ModelLoader):
    """A folder whose config.json says ``"quant_method": "fp8"``, for ``backend="auto"``."""

    name: ClassVar[str] = "fp8"
    requires = (TRANSFORMERS,)

    def claims(self, request: LoadRequest) -> bool:
        config = Path(request.source).expanduser() / "config.json"
        if request.backend not in ("auto", "fp8") or not config.is_file():
            return False
        try:
            found = json.loads(config.read_text())["quantization_config"]
            return bool(found["quant_method"] == "fp8" and not found.get("dequantize"))
        except (ValueError, KeyError, TypeError):
            return False

    def load(self, request: LoadRequest) -> nn.Module:
        import transformers
        from transformers import AutoConfig, AutoModelForCausalLM

        source = str(Path(request.source).expanduser())
        config = AutoConfig.from_pretrained(source)
        kind: Any = getattr(transformers, (config.architectures or [""])[0], AutoModelForCausalLM)
        _register()
        with _kept():
            arguments = dict(request.arguments)
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
            super().validate_environment(*args, **kwargs)
            if _KEEP.get():
                self.quantization_config.dequantize = False

    mapping: Any = AUTO_QUANTIZER_MAPPING
    mapping["fp8"] = KeptFp8
