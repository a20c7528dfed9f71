"""`PackingFolder`: a packed checkpoint that is written while the model is packed.

    quantlora_packing.json          what is packed, from which files, with which settings
    model-<path>.safetensors        one packed layer or stack of experts, when it is complete
    model-float.safetensors, the index, config.json      last: without them nothing loads it

A load that was stopped finds the complete ones again. Of other files or settings it finds none: a
checkpoint is never put together from two.
"""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import nn

from quantlora.discovery.diagnosis import diagnosed
from quantlora.discovery.registration import registry
from quantlora.errors import ConfigError
from quantlora.files.atomic_file import Writer, write_file
from quantlora.files.atomic_set import write_set
from quantlora.files.safetensors_file import TensorFile
from quantlora.files.same_files import changed_file, note_files
from quantlora.files.shards import INDEX, index_text
from quantlora.files.stream_tensors import TensorSource, stream_tensors
from quantlora.formats.layer_files import PackedState
from quantlora.formats.model_loader import LoadRequest
from quantlora.loading.pack_plan import Wanted
from quantlora.loading.packed_checkpoint import write_config
from quantlora.loading.packed_modules import PackedModule, float_tensors, packed_modules
from quantlora.loading.packing_recipe import recipe_of, side_files, source_files, source_folder

MANIFEST = "quantlora_packing.json"
#: Seconds between two looks for another process's file.
_PAUSE = 0.2
_CONFIG, _FLOAT, _NOTE = "config.json", "model-float.safetensors", "quantlora"


class PackingFolder:
    """The folder that a load packs into.

    Args:
        folder: new, empty, or what an earlier load of the same files has left.

    Raises:
        ConfigError: it holds something else, or is of other files or settings.
    """

    def __init__(
        self, folder: str | os.PathLike[str], request: LoadRequest, wanted: Wanted
    ) -> None:
        self.path = Path(os.path.abspath(folder))
        self.name, self.source = request.source, source_folder(request)
        self.recipe = recipe_of(request, wanted)
        self.rank, self.processes = (
            int(os.environ.get(name, default)) for name, default in (("RANK", 0), ("WORLD_SIZE", 1))
        )
        if self._manifest.is_file():
            noted = json.loads(self._manifest.read_text("utf-8"))
            self.files = noted["files"]
            self._check_recipe(noted["recipe"])
            self._check_source()
            return
        if self.path.exists() and (not self.path.is_dir() or any(self.path.iterdir())):
            raise ConfigError(
                f"packed_folder: {self.path} exists and is not an empty folder, nor one that such "
                f"a load has begun: choose another one."
            )
        self.files = note_files(self.source, source_files(self.source))

    @property
    def _manifest(self) -> Path:
        return self.path / MANIFEST

    def _begin(self) -> None:
        if not self._manifest.is_file():
            text = json.dumps({"recipe": self.recipe, "files": self.files}, indent=2) + "\n"
            write_file(self._manifest, _text(text))

    @property
    def finished(self) -> bool:
        return (self.path / _CONFIG).is_file()

    def _check_recipe(self, noted: Mapping[str, Any]) -> None:
        asked = self.recipe
        other = [n for n in {**noted, **asked} if noted.get(n) != asked.get(n)]
        if other:
            was, now = noted.get(other[0]), asked.get(other[0])
            raise ConfigError(
                f"packed_folder: {self.path} is packed with {other[0]} {was}, and {now} was asked "
                f"for: ask for the same, or give another folder, or remove it to pack anew."
            )

    def _check_source(self) -> None:
        if (name := changed_file(self.source, self.files)) is not None:
            raise ConfigError(
                f"packed_folder: {self.path} is packed from another {name} than {self.name} has "
                f"now. Put that file back, or give another folder, or remove it to pack anew."
            )

    def _file(self, path: str) -> Path:
        return self.path / f"model-{path}.safetensors"

    def is_shared(self, index: int) -> bool:
        """Whether the layer or stack of that number is another process's to pack.

        That is so under torchrun, whose processes see one file system.
        """
        return index % self.processes != self.rank

    def wait_for(self, path: str) -> nn.Module:
        """What another process packs at ``path``; torchrun ends all of them if one fails."""
        while (found := self.read(path)) is None:
            time.sleep(_PAUSE)
        return found

    def read(self, path: str) -> nn.Module | None:
        """The packed layer or stack at ``path``, on the CPU; None where it is not complete."""
        if not self._file(path).is_file():
            return None
        opened = TensorFile(self._file(path))
        note = json.loads(opened.metadata[_NOTE])
        names = {key.removeprefix(f"{path}."): key for key in opened.keys}
        tensors = {name: opened.tensor(key) for name, key in names.items()}
        quantizer = registry().quantizer(note["format"])
        state = PackedState(note["settings"], tensors)
        with diagnosed(quantizer):
            if note.get("experts"):
                return quantizer.from_experts_state(state)
            return quantizer.from_packed_state(state).eval()

    def write(self, module: PackedModule) -> None:
        """Whole or not at all; what is there already stays."""
        if self._file(module.path).is_file():
            return
        self._begin()
        metadata = {_NOTE: json.dumps(module.note())}
        content = partial(stream_tensors, tensors=sources_of(module), metadata=metadata)
        write_file(self._file(module.path), content)

    @torch.no_grad()
    def finish(self, model: nn.Module) -> None:
        """Write what stays float, and what makes the folder a checkpoint; config.json last.

        Of several processes the first one does.
        """
        if self.rank:
            return
        modules = list(packed_modules(model))
        for module in modules:
            self.write(module)
        self._check_source()
        floats = {n: TensorSource.of(t) for n, t in float_tensors(model, {m.path for m in modules})}
        shards = {self._file(module.path).name: sources_of(module) for module in modules}
        shards[_FLOAT] = floats
        size = sum(source.nbytes for shard in shards.values() for source in shard.values())
        files: dict[str, Writer] = {_FLOAT: partial(stream_tensors, tensors=floats)}
        files[INDEX] = _text(index_text(shards, size))
        files |= {file.name: partial(shutil.copyfile, file) for file in side_files(self.source)}
        written = {name for shard in shards.values() for name in shard}
        notes = {module.path: module.note() for module in modules}
        write_set(self.path, files | _configs(model, notes, written))


def sources_of(module: PackedModule) -> dict[str, TensorSource]:
    """A packed module's tensors by their names in the checkpoint."""
    tensors = module.state.tensors
    return {f"{module.path}.{name}": TensorSource.of(tensor) for name, tensor in tensors.items()}


def _text(text: str) -> Writer:
    return partial(Path.write_text, data=text, encoding="utf-8")


def _configs(
    model: nn.Module, notes: Mapping[str, Mapping[str, Any]], written: set[str]
) -> dict[str, Writer]:
    """The writers of the model's configs, config.json last."""
    with TemporaryDirectory() as folder:
        write_config(model, Path(folder), notes, written)
        texts = {file.name: file.read_text("utf-8") for file in Path(folder).iterdir()}
    order = sorted(texts, key=lambda name: (name == _CONFIG, name))
    return {name: _text(texts[name]) for name in order}
