"""What the two formats share: whose layers these are."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from typing import ClassVar

from torch import Tensor, nn

from quantlora import BackendError, MissingLibraryError, Quantizer
from quantlora_bnb.library import library
from quantlora_bnb.requires import REQUIRES

#: Where Transformers has the output head of nearly every language model.
_HEAD = "lm_head"


class BitsandbytesQuantizer(Quantizer):
    """Recognizes layers by their class, never by flags of the model around them."""

    module: ClassVar[str] = "bitsandbytes"
    requires = REQUIRES
    #: The class in ``bitsandbytes.nn``.
    layer_name: ClassVar[str]

    def layer_types(self) -> tuple[type[nn.Module], ...]:
        return (self._layer_type(),)

    def matches(self, layer: nn.Module) -> bool:
        """By class. The library is asked only about its own layers: an old one harms no other."""
        origins = {cls.__module__.partition(".")[0] for cls in type(layer).__mro__}
        return self.module in origins and isinstance(layer, self.layer_types())

    def _layer_type(self) -> type[nn.Module]:
        bnb = library()
        found = getattr(getattr(bnb, "nn", None), self.layer_name, None)
        if found is None:
            self.require()
            raise MissingLibraryError(
                f"backend {self.name!r}: the imported bitsandbytes "
                f"{getattr(bnb, '__version__', 'of unknown version')} ({bnb.__file__}) has no "
                f"nn.{self.layer_name}.\n"
                f'pip install --force-reinstall --no-deps "{REQUIRES[0].spec}"'
            )
        layer_type: type[nn.Module] = found
        return layer_type

    def _skipped(
        self, layers: Mapping[str, nn.Module], linears: Mapping[str, nn.Module]
    ) -> list[str]:
        """What Transformers is to leave as it is; it replaces `nn.Linear` itself, no subclass."""
        for path in layers:
            if type(linears[path]) is not nn.Linear:
                raise BackendError(
                    f"{path}: Transformers does not load bitsandbytes layers in place of "
                    f"{type(linears[path]).__name__}. Use another backend, or save dense weights."
                )
        skipped = [_skip(path, layers) for path in linears if path not in layers]
        # Also where these are the layers of a base model, which is saved later with its head.
        inner = _HEAD not in linears and not any(_HEAD in path for path in layers)
        return [*skipped, _HEAD] if inner else skipped

    def _not_packed(self, path: str = "") -> BackendError:
        prefix = f"{path}: " if path else ""
        return BackendError(
            f"{prefix}this {self.layer_name} holds no quantized weight yet. bitsandbytes packs it "
            f'when it is moved: call .to("cpu") or .to("cuda") on the layer first (for '
            f"Linear8bitLt built with has_fp16_weights=False), or load the model in this format."
        )


def _skip(path: str, layers: Collection[str]) -> str:
    """``path`` for Transformers, to which a name is an expression or any path's ending."""
    is_ending = any(other.endswith(path) for other in layers)
    return f"^{re.escape(path)}" if is_ending else path


def frozen(tensor: Tensor | None) -> nn.Parameter | None:
    """A copy as a parameter that is not trained."""
    return None if tensor is None else nn.Parameter(tensor.detach().clone(), False)
