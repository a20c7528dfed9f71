"""MXFP4 checkpoints stay in their blocks where Transformers would dequantize or swizzle them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import ClassVar, cast

from torch import nn

from quantlora import BackendError, ConfigError, LoadRequest, ModelLoader, pretrained
from quantlora_mxfp4.requires import ACCELERATE, TRANSFORMERS


class Mxfp4Loader(ModelLoader):
    """A folder or hub id whose config says ``"quant_method": "mxfp4"``."""

    name: ClassVar[str] = "mxfp4"
    requires = (TRANSFORMERS, ACCELERATE)

    def claims(self, request: LoadRequest) -> bool:
        if request.backend not in ("auto", "mxfp4") or "gguf_file" in request.arguments:
            return False
        return request.is_packed("mxfp4")

    def load(self, request: LoadRequest) -> nn.Module:
        from quantlora_mxfp4.transformers_format import forget_reading, kept_packed

        if request.options:
            raise BackendError(
                f"{request.source} is packed already, in MXFP4: load it without quantize_options."
            )
        kind, source = request.transformers_class, request.model_id_or_path
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
