"""MXFP4 folders stay in their blocks where Transformers would dequantize or swizzle them."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any, ClassVar, cast

from torch import nn

from quantlora import BackendError, ConfigError, LoadRequest, ModelLoader, pretrained
from quantlora_mxfp4.requires import ACCELERATE, TRANSFORMERS


class Mxfp4Loader(ModelLoader):
    """A folder whose config.json says ``"quant_method": "mxfp4"``."""

    name: ClassVar[str] = "mxfp4"
    requires = (TRANSFORMERS, ACCELERATE)

    def claims(self, request: LoadRequest) -> bool:
        config = Path(request.source).expanduser() / "config.json"
        if request.backend not in ("auto", "mxfp4") or not config.is_file():
            return False
        try:
            found = json.loads(config.read_text())["quantization_config"]
            return bool(found["quant_method"] == "mxfp4" and not found.get("dequantize"))
        except (ValueError, KeyError, TypeError):
            return False

    def load(self, request: LoadRequest) -> nn.Module:
        import transformers
        from transformers import AutoConfig, AutoModelForCausalLM

        from quantlora_mxfp4.transformers_format import forget_reading, kept_packed

        if request.options:
            raise BackendError(
                f"{request.source} is packed already, in MXFP4: load it without quantize_options."
            )
        source = str(Path(request.source).expanduser())
        config = pretrained(source, lambda: AutoConfig.from_pretrained(source))
        name = (config.architectures or [""])[0]
        kind: Any = getattr(transformers, name, AutoModelForCausalLM)
        arguments = {**request.arguments, "output_loading_info": True}
        with kept_packed() as problems:
            try:
                model, info = pretrained(source, lambda: kind.from_pretrained(source, **arguments))
            except ConfigError as error:
                raise (problems[0] if problems else error) from error
        _check_whole(info["missing_keys"])
        forget_reading(model)
        return cast(nn.Module, model)


def _check_whole(missing: Iterable[str]) -> None:
    """Experts that are not in the file would be random ones."""
    for name in missing:
        if ".experts." in name:
            raise ConfigError(
                f"{name} is not among the checkpoint's tensors: it is damaged or not whole."
            )
