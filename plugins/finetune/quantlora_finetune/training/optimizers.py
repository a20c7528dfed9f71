"""``--optim``: Transformers' optimizers, those that train factors of an update."""

from __future__ import annotations

from typing import Any

from torch import nn

from quantlora.errors import ConfigError
from quantlora.requirements import Requirement
from quantlora.suggestions import unknown
from quantlora_finetune.options.training import TrainingOptions

#: Trainer's own default, whichever kind of AdamW it is.
DEFAULT = "adamw"
_BITSANDBYTES = Requirement("bitsandbytes>=0.43", fix="pip install bitsandbytes")
_TORCHAO = Requirement("torchao>=0.4", fix="pip install torchao")
#: By the beginning of a name; the first that fits counts.
_LIBRARIES = {
    "adamw_torch_4bit": _TORCHAO,
    "adamw_torch_8bit": _TORCHAO,
    "adamw_torch": None,
    "adamw_bnb": _BITSANDBYTES,
    "adamw_8bit": _BITSANDBYTES,
    "ademamix": _BITSANDBYTES,
    "lion": _BITSANDBYTES,
    "paged": _BITSANDBYTES,
    "rmsprop_": _BITSANDBYTES,
    "grokadamw": Requirement("grokadamw", fix="pip install grokadamw"),
    "schedule_free": Requirement("schedulefree", fix="pip install schedulefree"),
    "stable_adamw": Requirement("torch-optimi", fix="pip install torch-optimi"),
}
#: They save memory by a gradient of low rank, which LoRA's are already.
_FULL_TRAINING = ("galore", "apollo", "lomo", "adalomo")
#: Tensors that are kept for each trained one; 2 where a name is not here.
_STATES = {
    "sgd": 0, "adagrad": 1, "rmsprop": 1, "lion": 1, "paged_lion": 1, "ademamix": 3,
    "paged_ademamix": 3,
}  # fmt: skip
#: bitsandbytes keeps smaller tensors in float32.
_SMALLEST_IN_8_BITS = 4096


def optimizer_libraries(optim: str) -> list[Requirement]:
    """What has to be installed for it."""
    found = next((need for start, need in _LIBRARIES.items() if optim.startswith(start)), None)
    return [found] if found is not None else []


def check_optimizer(options: TrainingOptions) -> None:
    """Raise `ConfigError` where Trainer has no such optimizer, or it does not train adapters."""
    from transformers.training_args import OptimizerNames

    offered = [DEFAULT, *(name.value for name in OptimizerNames)]
    if options.optim.startswith(_FULL_TRAINING):
        raise ConfigError(
            f"--optim {options.optim} projects the gradients of whole weights; an adapter's are "
            f"of low rank already. Use adamw_8bit or paged_adamw_8bit to save memory."
        )
    if options.optim not in offered:
        raise ConfigError(unknown("--optim", options.optim, offered))
    settings_in("--optim-args", options.optim_args)


def optimizer_settings(options: TrainingOptions) -> dict[str, Any]:
    """For `TrainingArguments`."""
    chosen = {} if options.optim == DEFAULT else {"optim": options.optim}
    return chosen | {
        "optim_args": options.optim_args,
        "weight_decay": options.weight_decay,
        "max_grad_norm": options.max_grad_norm,
    }


def optimizer_bytes_of(model: nn.Module, options: TrainingOptions) -> int:
    """Bytes that the optimizer will keep: a prediction."""
    name = options.optim
    base = name.removesuffix("_8bit").removesuffix("_32bit").removesuffix("_bnb")
    states = _STATES.get(base, 2)
    if name == "sgd" and "momentum" in (options.optim_args or ""):
        states = 1
    trained = [p for p in model.parameters() if p.requires_grad]
    if name == "adafactor":  # a row and a column for each matrix
        return sum(4 * (sum(p.shape[-2:]) if p.dim() > 1 else p.numel()) for p in trained)
    eight = name.endswith("8bit")
    return sum(states * p.numel() * _itemsize(p, eight) for p in trained)


def _itemsize(parameter: nn.Parameter, eight: bool) -> int:
    return 1 if eight and parameter.numel() >= _SMALLEST_IN_8_BITS else parameter.itemsize


def settings_in(option: str, text: str | None) -> dict[str, Any]:
    """``"momentum=0.9,nesterov=true"`` as values by name.

    Raises:
        ConfigError: it is of another form.
    """
    pairs = [part.partition("=") for part in (text or "").split(",") if part.strip()]
    if any(not (name.strip() and value.strip()) for name, _, value in pairs):
        raise ConfigError(f"{option} is name=value,name=value, got {text}.")
    return {name.strip(): _value(value.strip()) for name, _, value in pairs}


def _value(text: str) -> Any:
    if text.lower() in ("true", "false"):
        return text.lower() == "true"
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text
