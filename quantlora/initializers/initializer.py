"""`Initializer`: the choice of the first A and B of an adapter."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from torch import Tensor

if TYPE_CHECKING:
    from quantlora.config.lora_config import LoraConfig
    from quantlora.formats.quantizer import Quantizer
    from quantlora.layers.layer import LoraLayer


@dataclass(frozen=True)
class InitContext:
    """What an initializer may look at.

    Args:
        path: the layer's place in the model, for messages.
        adapter: the name of the adapter being added.
        config: its config.
        reference: gives the float weight ``(out_features, in_features)`` from before
            quantization, read when called; None when there is no such weight.
        fresh: the base was quantized by this very call, so another may take its place; a base
            that was there before stays as it is, for others may rely on it.
    """

    path: str
    adapter: str
    config: LoraConfig
    reference: Callable[[], Tensor] | None = None
    fresh: bool = False


class Initializer(ABC):
    """One way to choose A and B. Picked by ``init_lora_weights="<name>"``.

    Tensors of the base are never changed in place, so that a failing `wrap` loses nothing: an
    initializer that changes the base puts a new one at ``layer.base_layer``, and declares it.
    """

    name: ClassVar[str]
    #: Whether another base may be put in place. Then files say so, and are checked when loaded.
    changes_base: ClassVar[bool] = False
    #: Whether it can be shown the packed experts of a mixture one by one, each as a linear layer at
    #: a path of its own (``...experts.down_proj.3``). Else experts are left out, with a warning.
    takes_experts: ClassVar[bool] = False

    def answers_to(self, name: str) -> bool:
        """Whether ``init_lora_weights=name`` (in small letters) means this one.

        Override it where a name carries a number: ``"pissa_niter_4"``.
        """
        return name == self.name

    def check(self, config: LoraConfig) -> None:
        """Raise `ConfigError` before anything is touched where ``config`` does not fit."""

    def quantize_options(self, config: LoraConfig, quantizer: Quantizer) -> Mapping[str, Any]:
        """Settings to quantize with where ``config`` has some; ``quantize_options`` win over them.

        Raise `ConfigError` where ``quantizer``, the backend asked for, cannot do it.
        """
        return {}

    @abstractmethod
    def initialize(self, layer: LoraLayer, context: InitContext) -> None:
        """Fill ``lora_A`` and ``lora_B`` of ``context.adapter`` in ``layer``."""
