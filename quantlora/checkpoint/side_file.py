"""``quantlora.json``: what an adapter was trained on, for which PEFT's config has no field.

    {"base": {"class": ..., "fingerprint": ...},
     "formats": [{"quantizer": ..., "bits": ..., "layers": [...]}, ...],
     "card": "<digest of README.md>", "new_card": "<of README.new.md>",
     "quantlora": "<version>"}

It is a note to the reader: an adapter loads without it.
"""

from __future__ import annotations

import hashlib
import json
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import quantlora
from quantlora.adapters.adapted_model import AdaptedModel
from quantlora.adapters.modules_to_save import ModulesToSaveWrapper
from quantlora.checkpoint.base_note import check_note
from quantlora.checkpoint.config_file import LIMIT
from quantlora.checkpoint.conversion import changed_layers
from quantlora.checkpoint.location import SIDE, own_file
from quantlora.errors import warn
from quantlora.layers.layer import LoraLayer
from quantlora.names import plain_path

#: Facts about a layer by name; ``quantizer`` is one of them.
Facts = dict[str, Any]


def side_text(
    adapted: AdaptedModel,
    adapter: str,
    base_change: Any = None,
    cards: Mapping[str, str] | None = None,
) -> str:
    """The file's text for ``adapter``.

    Args:
        base_change: as `base_note` gives it.
        cards: digests of the model cards beside it that were written here as a whole, by field.
    """
    groups: dict[str, list[str]] = defaultdict(list)
    for path, facts in _facts(adapted, adapter).items():
        groups[json.dumps(facts, sort_keys=True, default=str)].append(path)
    note = {
        "base": _base(adapted),
        "formats": [json.loads(facts) | {"layers": paths} for facts, paths in groups.items()],
        "quantlora": quantlora.__version__,
    }
    if base_change:
        note["base_change"] = base_change
    note |= cards or {}
    return json.dumps(note, indent=2, sort_keys=True)


def read_note(folder: Path) -> dict[str, Any]:
    """What the file in ``folder`` says; nothing where there is none, or it cannot be read."""
    file = folder / SIDE
    try:
        if own_file(folder, SIDE).stat().st_size > LIMIT:
            raise ValueError(f"larger than {LIMIT >> 20} MiB")
        return _checked(json.loads(file.read_text("utf-8")))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, RecursionError) as error:
        message = f"{file} cannot be read and is ignored: {error}"
        warn(message)
        return {}


def card_digest(folder: Path, field: str) -> str | None:
    """The digest of a card that was written beside the file in ``folder``, if it says one."""
    try:
        note = json.loads(own_file(folder, SIDE).read_text("utf-8"))
        return str(note[field])
    except (OSError, ValueError, RecursionError, LookupError, TypeError):
        return None


def _checked(note: Any) -> dict[str, Any]:
    """A note of the form above: what reads it later must not fail, the adapter is loaded then."""
    if not isinstance(note, dict) or not isinstance(note.get("base", {}), dict):
        raise ValueError("it is no note of quantlora")
    formats = note.get("formats", [])
    if not isinstance(formats, list) or not all(_names_layers(facts) for facts in formats):
        raise ValueError("its formats are no lists of layers")
    check_note(note.get("base_change"))
    return note


def _names_layers(facts: Any) -> bool:
    paths = facts.get("layers") if isinstance(facts, dict) else None
    return isinstance(paths, list) and all(isinstance(path, str) for path in paths)


def report_differences(
    note: dict[str, Any], adapted: AdaptedModel, adapter: str, source: str
) -> None:
    """Warn, in one `AdapterWarning`, where the model is not what the adapter was trained on."""
    found = [
        *_other_base(note.get("base", {}), _base(adapted)),
        *_other_formats(note, adapted, adapter),
        *_changed_base(note, adapted, adapter),
    ]
    if found:
        warn(
            f"{source}: the adapter was trained on another base: {'; '.join(found)}. It is loaded; "
            f"evaluate it here before you rely on it.",
        )


def _base(adapted: AdaptedModel) -> dict[str, Any]:
    compiled_from = getattr(adapted.model, "_orig_mod", adapted.model)
    return {"class": type(compiled_from).__name__, "fingerprint": fingerprint(adapted)}


def _facts(adapted: AdaptedModel, adapter: str) -> dict[str, Facts]:
    """What each layer of the adapter is (or was, before a merge), by path."""
    facts: dict[str, Facts] = {}
    for path, layer in adapted.lora_layers.items():
        if adapter in layer.adapters:
            base, quantizer = layer.plain_base
            form = {"quantizer": quantizer.name, "group_size": quantizer.group_size(base)}
            found = form | quantizer.describe(base) | layer.file_notes(adapter)
            facts[plain_path(path)] = json.loads(json.dumps(found))  # tuples as they come back
    return facts


def _other_base(was: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """The class is a note for people: an adapter may well move from one head to another."""
    before, here = was.get("fingerprint"), now["fingerprint"]
    return ["its norms have other values"] if before and here and before != here else []


def _changed_base(note: dict[str, Any], adapted: AdaptedModel, adapter: str) -> list[str]:
    """A file that knows of no change, over layers that an initializer has changed."""
    changes = {} if note.get("base_change") else changed_layers(adapted, adapter)
    return [
        f"initializer {change.initializer!r} of adapter {change.adapter!r} has changed it here "
        f"({len(changes)} layers, {path} first), and the file does not say that it knows"
        for path, (_, change) in list(changes.items())[:1]
    ]


def _other_formats(note: dict[str, Any], adapted: AdaptedModel, adapter: str) -> list[str]:
    before = {path: facts for facts in note.get("formats", []) for path in facts["layers"]}
    paths_of: dict[str, list[str]] = defaultdict(list)
    for path, now in _facts(adapted, adapter).items():
        if difference := _difference(before.get(path, now), now):
            paths_of[difference].append(path)
    return [f"{what} ({len(paths)} layers, {paths[0]} first)" for what, paths in paths_of.items()]


def _difference(was: Facts, now: Facts) -> str:
    """In words; how values are stored or computed with is no difference in what they are."""
    if was.get("quantizer") != now["quantizer"]:
        return f"{_words(was)}, now {_words(now)}"
    changed = [
        name
        for name in was.keys() & now.keys()
        if not name.endswith(("dtype", "storage")) and str(was[name]) != str(now[name])
    ]
    return ", ".join(f"{n} was {was[n]!r}, is {now[n]!r}" for n in sorted(changed))


def _words(facts: Facts) -> str:
    bits = f" with {facts['bits']} bits" if "bits" in facts else ""
    return f"{facts.get('quantizer')}{bits}"


def fingerprint(adapted: AdaptedModel) -> str | None:
    """A hash over the one-dimensional weights: the norms, which every format leaves as they are.

    They are compared in bfloat16, so that the dtype a model is loaded in makes no difference.
    None where there are none, or where they are trained, sharded or not in memory.
    """
    digest, count = hashlib.sha256(), 0
    for path, module in adapted.modules.items():
        if isinstance(module, LoraLayer):  # its weight is made when it is read, of two dimensions
            continue
        plain = module.original_module if isinstance(module, ModulesToSaveWrapper) else module
        weight = getattr(plain, "weight", None)
        if not isinstance(weight, Tensor) or weight.ndim != 1 or not weight.is_floating_point():
            continue
        if weight.requires_grad or weight.is_meta or type(weight) not in (Tensor, nn.Parameter):
            return None
        values = weight.detach().to("cpu", torch.bfloat16).contiguous().view(torch.int16)
        digest.update(f"{plain_path(path)}:{tuple(weight.shape)}:".encode())
        digest.update(values.numpy().tobytes())
        count += 1
    return f"sha256:{digest.hexdigest()}" if count else None
