"""Diffusers' layout of an adapter: one file, keys under the component's name, settings in it.

    unet.<path>.lora_A.weight (r, in)      unet.<path>.lora_B.weight (out, r)
    metadata: lora_adapter_metadata = {"unet.r": 8, "unet.lora_alpha": 8, ...}

From ``save_lora_adapter`` and ``save_lora_weights`` (diffusers 0.42), and read by their
counterparts. Only files are touched: diffusers need not be here.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from quantlora.checkpoint.config_file import config_from, config_text
from quantlora.checkpoint.keys import PREFIX
from quantlora.checkpoint.location import CONFIG, DEFAULT, WEIGHTS, find_folder
from quantlora.checkpoint.read import read_adapter
from quantlora.checkpoint.weights_file import write_weights
from quantlora.config.patterns import as_pattern
from quantlora.errors import AdapterFileError
from quantlora.files.atomic_set import write_set

#: The name that diffusers looks for in a folder.
DIFFUSERS_FILE = "pytorch_lora_weights.safetensors"
_METADATA = "lora_adapter_metadata"
#: What PEFT takes to build the adapter again; the base and the task are not diffusers' concern.
_FIELDS = (
    "r", "lora_alpha", "lora_dropout", "target_modules", "exclude_modules", "rank_pattern",
    "alpha_pattern", "use_rslora", "use_dora", "lora_bias", "bias", "fan_in_fan_out",
)  # fmt: skip
#: Ends of the keys of other layouts: kohya's, and diffusers' own before PEFT.
_OTHERS = ("lora_down.weight", "lora_up.weight", "lora.down.weight", "lora.up.weight")


def to_diffusers(
    adapter: str | os.PathLike[str], folder: str | os.PathLike[str], component: str | None = "unet"
) -> Path:
    """Write the adapter in ``adapter`` as diffusers' pipelines load it.

    Args:
        adapter: its folder or hub id, as `save_adapter` or PEFT writes it.
        folder: gets ``pytorch_lora_weights.safetensors``, for ``pipe.load_lora_weights(folder)``.
        component: the pipeline's name for the model, ``"unet"``, ``"transformer"``,
            ``"text_encoder"``; None for ``model.load_lora_adapter(folder, prefix=None)``.

    Raises:
        AdapterFileError: the adapter cannot be read, or has modules that were trained in full.
    """
    saved = read_adapter(find_folder(adapter, DEFAULT))
    config = vars(saved.config)
    if config["modules_to_save"] or config["trainable_token_indices"]:
        raise AdapterFileError(
            f"{adapter}: diffusers' layout has no place for modules or tokens trained in full."
        )
    fields = {name: config[name] for name in _FIELDS}
    metadata = {_METADATA: json.dumps(_under(component, fields), indent=2, sort_keys=True)}
    plain = {key.removeprefix(PREFIX): value for key, value in saved.tensors.items()}
    tensors = _under(component, plain)
    write = partial(_write, tensors=tensors, metadata={"format": "pt", **metadata})
    write_set(Path(folder), {DIFFUSERS_FILE: write})
    return Path(folder, DIFFUSERS_FILE)


def from_diffusers(
    source: str | os.PathLike[str],
    folder: str | os.PathLike[str],
    component: str | None = "unet",
) -> Path:
    """Write diffusers' file as a folder for `load_adapter`.

    Args:
        source: the file, or a folder with ``pytorch_lora_weights.safetensors``.
        component: whose adapter to take, where the file has several; None for keys without one.

    Returns:
        ``folder``.

    Raises:
        AdapterFileError: the file is missing, damaged or in another layout, or has nothing for
            ``component``.
    """
    file = Path(source) if Path(source).suffix else Path(source, DIFFUSERS_FILE)
    every, metadata = _read(file)
    tensors = _below(component, every)
    if not tensors:
        names = sorted({key.partition(".")[0] for key in every})
        raise AdapterFileError(
            f"{file}: nothing is under component {component!r}; it has {', '.join(names)}."
        )
    fields = _below(component, metadata) or _fields_from(tensors)
    config = config_from({**fields, "peft_type": "LORA"}, str(file))
    keyed = {PREFIX + key: value for key, value in tensors.items()}
    text = config_text(config, config.target_modules, None)
    write_set(
        Path(folder),
        {CONFIG: partial(_write_text, text), WEIGHTS: partial(write_weights, tensors=keyed)},
    )
    return Path(folder)


def _under(component: str | None, values: Mapping[str, Any]) -> dict[str, Any]:
    before = f"{component}." if component else ""
    return {before + key: value for key, value in values.items()}


def _below(component: str | None, values: Mapping[str, Any]) -> dict[str, Any]:
    before = f"{component}." if component else ""
    return {k.removeprefix(before): v for k, v in values.items() if k.startswith(before)}


def _read(file: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    try:
        with safe_open(file, framework="pt") as opened:
            tensors = {key: opened.get_tensor(key) for key in opened.keys()}  # noqa: SIM118
            metadata = json.loads((opened.metadata() or {}).get(_METADATA) or "{}")
    except (OSError, ValueError, SafetensorError) as error:
        raise AdapterFileError(f"{file}: diffusers' adapter cannot be read: {error}") from error
    other = [key for key in tensors if key.endswith(_OTHERS) or key.endswith(".alpha")]
    if other:
        raise AdapterFileError(
            f"{file}: {other[0]} is of an older layout (kohya's, or diffusers' before PEFT): load "
            f"it in diffusers, and save it again with pipe.save_lora_weights."
        )
    return tensors, metadata


def _fields_from(tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """Of a file without metadata: ranks by the shapes, and alpha is the rank, as in diffusers."""
    end = ".lora_B.weight"
    ranks = {k.removesuffix(end): v.shape[1] for k, v in tensors.items() if k.endswith(end)}
    r, pattern = as_pattern(ranks)
    dora = any("lora_magnitude_vector" in key for key in tensors)
    both = {"rank_pattern": pattern, "alpha_pattern": dict(pattern), "use_dora": dora}
    return {"r": r, "lora_alpha": r, "target_modules": sorted(ranks), **both}


def _write(file: Path, tensors: Mapping[str, Tensor], metadata: dict[str, str]) -> None:
    save_file({key: value.contiguous() for key, value in tensors.items()}, file, metadata)


def _write_text(text: str, file: Path) -> None:
    file.write_text(text, "utf-8")
