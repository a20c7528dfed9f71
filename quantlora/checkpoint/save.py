"""`save_adapter`: one adapter to a folder, in PEFT's format."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from torch import Tensor, nn

from quantlora.adapters.adapted_model import AdaptedModel
from quantlora.checkpoint.adapter_tensors import adapter_tensors, values_of
from quantlora.checkpoint.attention_files import warn_of_lone_out_proj
from quantlora.checkpoint.auto_mapping import auto_mapping
from quantlora.checkpoint.base_note import base_note
from quantlora.checkpoint.base_tensors import changed_base
from quantlora.checkpoint.config_file import config_text
from quantlora.checkpoint.conversion import (
    add_first_values,
    converted_config,
    is_converted,
    written_init,
)
from quantlora.checkpoint.expert_names import warn_of_expert_names
from quantlora.checkpoint.location import CONFIG, PICKLE, SIDE, WEIGHTS, folders_of
from quantlora.checkpoint.model_card import card_files
from quantlora.checkpoint.portable import portable as plain_lora
from quantlora.checkpoint.side_file import side_text
from quantlora.checkpoint.split_experts import PER_EXPERT, STACKED, has_experts, split_experts
from quantlora.checkpoint.target_names import written_targets
from quantlora.checkpoint.variant_fields import file_config
from quantlora.checkpoint.weights_file import write_weights
from quantlora.distributed.gather import one_writes
from quantlora.errors import AdapterFileError, ConfigError, warn
from quantlora.files.atomic_file import Writer
from quantlora.files.atomic_set import write_set
from quantlora.formats.finite import not_finite

if TYPE_CHECKING:
    from huggingface_hub import ModelCard


def save_adapter(
    model: nn.Module,
    folder: str | os.PathLike[str],
    adapter_name: str = "default",
    *,
    state_dict: Mapping[str, Tensor] | None = None,
    save_embedding_layers: bool | str = "auto",
    convert: bool | None = None,
    portable: bool = False,
    experts: str = STACKED,
    card: ModelCard | None = None,
) -> Path:
    """Write the adapter ``adapter_name`` of ``model``, for quantlora, PEFT and vLLM to read.

    Killed at any moment, the folder holds the adapter that was there before or the new one,
    whole. What else is in the folder stays. A model card, ``README.md``, is written where there is
    none, or one as it was written here; to any other, metadata that it lacks are added.

    A model that is sharded (FSDP2, DeepSpeed ZeRO-3) is gathered: every process must call this,
    the first one writes.

    Args:
        model: a wrapped model.
        folder: made where it does not exist. An adapter not called ``default`` goes to a
            sub-folder of its name.
        state_dict: take the values from here, by their names in ``model.state_dict()``, where
            they are gathered already; then nothing is, and only one process may call this.
        save_embedding_layers: also write the base's embeddings; ``"auto"`` where their vocabulary
            is not that of the checkpoint the base was loaded from, or they came with the adapter.
        convert: where an initializer has changed the base (PiSSA, OLoRA, ...): True writes plain
            LoRA of a higher rank for the original base, False the adapter for the changed base,
            which must be saved too. None converts where that loses nothing, else warns.
        portable: write it so that every server computes the same: scales are
            multiplied into B, ranks made equal with zeros; rsLoRA and patterns are gone then.
        experts: how adapters on fused experts are written: ``"stacked"``, as PEFT has them, or
            ``"per_expert"``: one for each layer of each expert, by the names that checkpoints on
            the hub have, for vLLM, SGLang and Transformers 4 (with ``portable=True`` where a server
            takes one rank).
        card: the model card, with what you have to say of the adapter; default: a short one. Where
            somebody has edited the card that is there, this one goes to ``README.new.md``.

    Returns:
        The folder the files are in.

    Raises:
        AdapterError: there is no such adapter.
        AdapterFileError: the folder cannot be written to, a tensor is empty, or the adapter cannot
            be converted, or its experts not be written one by one.
        ConfigError: ``experts`` is none of the two.
    """
    if experts not in (STACKED, PER_EXPERT):
        raise ConfigError(f"experts must be {STACKED!r} or {PER_EXPERT!r}, got {experts!r}.")
    adapted = AdaptedModel.of(model)
    adapted.state.known(adapter_name)
    root, location = folders_of(folder, adapter_name)
    return write_adapter(
        adapted,
        location,
        adapter_name,
        state_dict=state_dict,
        root=root,
        save_embedding_layers=save_embedding_layers,
        convert=convert,
        portable=portable,
        experts=experts,
        card=card,
    )


def write_adapter(
    adapted: AdaptedModel,
    location: Path,
    adapter: str,
    *,
    state_dict: Mapping[str, Tensor] | None = None,
    root: Path | None = None,
    save_embedding_layers: bool | str = "auto",
    convert: bool | None = None,
    portable: bool = False,
    experts: str = STACKED,
    card: ModelCard | None = None,
) -> Path:
    """Write ``adapter`` to the folder ``location`` itself, whatever its name."""
    config = file_config(adapted, adapted.state.known(adapter), adapter)
    warn_of_expert_names(adapted, adapter)
    warn_of_lone_out_proj(adapted, adapter)
    targets = written_targets(adapted, config, adapter)
    converted = is_converted(adapted, adapter, convert)
    base_change = base_note(adapted, config, adapter, converted)
    tensors = adapter_tensors(adapted, adapter, state_dict, save_embedding_layers)
    if bad := not_finite(tensors):
        warn(
            f"adapter {adapter!r} is saved with NaN or infinite values ({bad[0]} first), and will "
            f"not load: its training has diverged, take an earlier checkpoint."
        )
    init = True if converted else written_init(adapted, adapter)
    if converted:
        config = converted_config(adapted, config, adapter)
        add_first_values(adapted, adapter, tensors)
    if experts == PER_EXPERT and has_experts(adapted, adapter):
        config, tensors = split_experts(adapted, config, tensors, adapter)
        targets = written_targets(adapted, config, adapter)
    if portable:
        config, tensors = plain_lora(config, tensors, adapter)
    base = vars(adapted.model).get("name_or_path") or None
    mapping = auto_mapping(adapted.model, config.task_type)
    text = config_text(config, targets, base, init, mapping)
    written = card_files(location, config, config.base_model_name_or_path or base, card)
    note = side_text(adapted, adapter, base_change, written.digests)
    texts = written.texts | {CONFIG: text, SIDE: note}
    files: dict[str, Writer] = {
        name: partial(Path.write_text, data=data, encoding="utf-8") for name, data in texts.items()
    }
    files[WEIGHTS] = partial(write_weights, tensors=tensors)
    with one_writes(adapted.model, state_dict) as here, _explained(location):
        if here:
            write_set(location, files, obsolete=(PICKLE, *written.obsolete), within=root)
    return location


def update_card(model: nn.Module, folder: Path, adapter: str) -> None:
    """Write the card for ``adapter`` as `save_adapter` does, and no other file."""
    config = AdaptedModel.of(model).state.known(adapter)
    base = config.base_model_name_or_path or model.__dict__.get("name_or_path") or None
    files = {
        name: partial(Path.write_text, data=data, encoding="utf-8")
        for name, data in card_files(folder, config, base).texts.items()
    }
    with _explained(folder):
        write_set(folder, dict[str, Writer](files))


def write_trained(
    model: nn.Module, folder: Path, state_dict: Mapping[str, Tensor] | None = None
) -> None:
    """Write what is trained, and the embeddings that the base's checkpoint does not have, under
    their names in the model: the file Trainer resumes from.

    Without PEFT, Trainer looks for no adapter, only for a state dict of this name.
    """
    value = values_of(model, state_dict)
    kept = {name: p for name, p in model.named_parameters() if p.requires_grad}
    adapted = AdaptedModel.of(model)
    for adapter in adapted.state.active:
        kept |= changed_base(adapted, adapter)
    tensors = {name: value(p) for name, p in kept.items()}
    with one_writes(model, state_dict) as here, _explained(folder):
        if here:
            write_set(folder, {"model.safetensors": partial(write_weights, tensors=tensors)})


@contextmanager
def _explained(folder: Path) -> Iterator[None]:
    """Turn what the system refuses within the block into an `AdapterFileError`."""
    try:
        yield
    except AdapterFileError:
        raise
    except OSError as error:
        raise AdapterFileError(
            f"{folder}: the adapter could not be saved: {error.strerror or error}. What was there "
            f"before is as it was."
        ) from error
