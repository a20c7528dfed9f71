"""The options that say what is trained: the adapter."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Annotated

from quantlora_finetune.options.choices import option

_ADAPTER = "Adapter"


@dataclass(frozen=True)
class AdapterOptions:
    """The adapter, as `LoraConfig` has it."""

    rank: Annotated[int, option(_ADAPTER, "Rank of the update.", "--rank", "-r", min=1)] = 8
    alpha: Annotated[
        float | None,
        option(_ADAPTER, "The update is scaled by alpha / rank. Default: twice the rank."),
    ] = None
    dropout: Annotated[
        float, option(_ADAPTER, "Share of the adapter's inputs dropped.", min=0.0, max=0.99)
    ] = 0.0
    target_modules: Annotated[
        str,
        option(
            _ADAPTER,
            "`all-linear`, names with commas between them (`q_proj,v_proj`), or a regular "
            "expression for the whole path.",
        ),
    ] = "all-linear"
    modules_to_save: Annotated[
        str | None,
        option(
            _ADAPTER,
            "Modules to train in full and save beside the adapter: names with commas.",
        ),
    ] = None
    init: Annotated[
        str, option(_ADAPTER, "First values of A and B; `quantlora plugins` lists them.")
    ] = "default"
    variant: Annotated[str, option(_ADAPTER, "`lora`, or a variant such as `dora`.")] = "lora"
    use_rslora: Annotated[
        bool, option(_ADAPTER, "Scale by alpha / the root of the rank.", "--use-rslora")
    ] = False
    lora_fa: Annotated[
        bool,
        option(
            _ADAPTER,
            "LoRA-FA: A stays as it is and B is trained, which keeps far fewer activations.",
            "--lora-fa",
        ),
    ] = False

    @property
    def lora_alpha(self) -> float:
        return 2 * self.rank if self.alpha is None else self.alpha

    @property
    def targets(self) -> str | list[str]:
        """``target_modules`` as `LoraConfig` has it: a list of names, or a pattern."""
        is_pattern = re.search(r"[\\^$*+?()\[\]{}|]", self.target_modules)
        if is_pattern or self.target_modules == "all-linear":
            return self.target_modules
        return names_in(self.target_modules)


def names_in(text: str) -> list[str]:
    """The names between the commas."""
    return [name.strip() for name in text.split(",") if name.strip()]
