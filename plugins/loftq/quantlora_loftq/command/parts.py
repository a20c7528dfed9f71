"""Finished layers, one file each: what a killed run leaves to the next one."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from quantlora import ConfigError, TensorFile, write_file, write_tensors

_RECIPE = "recipe.json"


class Parts:
    """The folder ``.parts`` of an unfinished result."""

    def __init__(self, folder: Path, recipe_text: str) -> None:
        self.folder = folder / ".parts"
        self.folder.mkdir(parents=True, exist_ok=True)
        self._check(recipe_text)

    def _check(self, text: str) -> None:
        file = self.folder / _RECIPE
        if not file.exists():
            write_file(file, lambda new: new.write_text(text, "utf-8"))
        elif file.read_text("utf-8") != text:
            raise ConfigError(
                f"{self.folder} holds layers of an unfinished run with other options (see "
                f"{_RECIPE} there). Finish it with those options, or remove {self.folder.parent}."
            )

    def file(self, path: str) -> Path:
        return self.folder / f"{path}.safetensors"

    def done(self, path: str) -> bool:
        return self.file(path).exists()

    def save(self, path: str, tensors: Mapping[str, Tensor], facts: Mapping[str, str]) -> None:
        """Whole or not at all."""
        plain = {key: tensor.detach().cpu().contiguous() for key, tensor in tensors.items()}
        write_file(self.file(path), lambda new: write_tensors(new, plain, facts))

    def open(self, path: str) -> TensorFile:
        return TensorFile(self.file(path))

    def remove(self) -> None:
        shutil.rmtree(self.folder)
