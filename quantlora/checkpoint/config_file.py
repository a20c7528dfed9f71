"""``adapter_config.json``: PEFT's fields, written as PEFT writes them and read with care."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from quantlora.checkpoint.location import CONFIG, own_file
from quantlora.config.lora_config import LoraConfig
from quantlora.config.peft_config import UNSUPPORTED, split_fields
from quantlora.errors import AdapterFileError, ConfigError, warn

#: Written only where they differ from their default: older PEFT and vLLM do not know them.
_WHERE_USED = (
    "use_qalora",
    "use_variant",
    "qalora_group_size",
    "lora_bias",
    "target_parameters",
    "trainable_token_indices",
    "ensure_weight_tying",
)
#: Settings of the start of training or of a machine; a finished adapter does not depend on them.
_OF_NO_EFFECT = (
    "auto_mapping", "corda_config", "eva_config", "loftq_config",
    "lora_ga_config", "megatron_config", "megatron_core", "peft_version", "qalora_group_size",
    "runtime_config", "velora_config",
)  # fmt: skip
#: Bytes of JSON that are read at most: no adapter's config or note comes near this.
LIMIT = 16 * 2**20


def config_text(
    config: LoraConfig,
    targets: list[str] | str | None,
    base: str | None,
    init: bool | str = True,
    mapping: Mapping[str, str] | None = None,
) -> str:
    """The file's text: sorted keys, two spaces of indent.

    Args:
        init: a name only where the adapter needs a base that its initializer has changed; else
            True: the values are in the file, and nobody is to choose them again.
        mapping: the base's class, for a config without task type.
    """
    fields = dataclasses.asdict(config)
    fields |= {
        "target_modules": targets,
        "base_model_name_or_path": config.base_model_name_or_path or base,
        "inference_mode": True,
        "init_lora_weights": init,
    }
    if mapping is not None:
        fields["auto_mapping"] = dict(mapping)
    defaults = {field.name: field.default for field in dataclasses.fields(LoraConfig)}
    for name in _WHERE_USED:
        if fields[name] == defaults[name]:
            del fields[name]
    del fields["loftq_config"], fields["eva_config"], fields["target_experts"]
    return json.dumps(fields, indent=2, sort_keys=True)


def read_config(folder: Path, base_is_noted: bool = False) -> tuple[LoraConfig, str]:
    """The config in ``folder``, and the version of the PEFT that has written it, if one has."""
    fields = _fields(folder)
    config = config_from(fields, str(folder / CONFIG), base_is_noted)
    return config, str(fields.get("peft_version") or "")


def config_from(fields: Mapping[str, Any], source: str, base_is_noted: bool = False) -> LoraConfig:
    """A config from PEFT's fields. Unknown ones that are set are named in one warning.

    Raises `AdapterFileError`, naming ``source``, where it is no LoRA config, a field has the
    wrong type, or the adapter computes what quantlora cannot.
    """
    if fields.get("peft_type") != "LORA":
        raise AdapterFileError(
            f"{source}: peft_type is {fields.get('peft_type')!r}: quantlora reads LORA only."
        )
    given, others = split_fields(fields)
    given.setdefault("target_modules", None)  # then those that the file has tensors for
    _check_others(source, others)
    init = given.get("init_lora_weights", True)
    if not (base_is_noted and isinstance(init, str)):  # the note knows which base it is
        init = _first_values(source, init)
    given["init_lora_weights"] = True if isinstance(init, str) else init
    given["loftq_config"] = given["eva_config"] = None
    given["target_experts"] = False  # a file names the parameters that it has
    try:
        return LoraConfig(**given)
    except ConfigError as error:
        raise AdapterFileError(f"{source}: {error}") from error


def _fields(folder: Path) -> dict[str, Any]:
    file = folder / CONFIG
    try:
        if own_file(folder, CONFIG).stat().st_size > LIMIT:
            raise AdapterFileError(f"{file}: larger than {LIMIT >> 20} MiB, no adapter's config.")
        fields = json.loads(file.read_text("utf-8"))
    except FileNotFoundError:
        raise AdapterFileError(_missing(folder)) from None
    except (ValueError, RecursionError, OSError) as error:
        if isinstance(error, AdapterFileError):
            raise
        raise AdapterFileError(f"{file} cannot be read: {error}") from error
    if not isinstance(fields, dict):
        raise AdapterFileError(f"{file} holds {type(fields).__name__}, expected an object.")
    return fields


def _missing(folder: Path) -> str:
    below = sorted(file.parent.name for file in folder.glob(f"*/{CONFIG}"))
    hint = f" Its sub-folders hold {', '.join(below)}: give that name or folder." if below else ""
    return f"{folder}: there is no {CONFIG}; is it the folder of an adapter?{hint}"


def _check_others(source: str, others: Mapping[str, Any]) -> None:
    refused = sorted(name for name in others if name in UNSUPPORTED)
    if refused:
        raise AdapterFileError(
            f"{source}: the adapter uses {', '.join(refused)}, which quantlora does not have: its "
            f"outputs would be wrong here. Use PEFT for it."
        )
    if unknown := sorted(name for name in others if name not in _OF_NO_EFFECT):
        warn(
            f"{source}: unknown fields are ignored: {', '.join(unknown)}. If a newer PEFT has "
            f"written it, compare its outputs before you rely on them.",
        )


def _first_values(source: str, init: Any) -> Any:
    """True for any start that left the base as it was; a changed base is warned about."""
    if isinstance(init, str) and init.lower() not in ("gaussian", "eva", "orthogonal"):
        warn(
            f"{source}: init_lora_weights={init!r} changes the base weights when training starts. "
            f"Load the adapter on the base that was saved with it, not on the original one.",
        )
    return True if isinstance(init, (str, bool)) or init is None else init
