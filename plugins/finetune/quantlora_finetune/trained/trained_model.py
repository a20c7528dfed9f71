"""The model of a trained folder, loaded as it was trained: base, format, adapter, tokenizer."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from quantlora import adapters_disabled, load_adapter
from quantlora.errors import ConfigError, FinetuneError
from quantlora_finetune.data.examples import TrainingTokenizer
from quantlora_finetune.model.base_model import BaseModel, base_named, load_model
from quantlora_finetune.run import processes
from quantlora_finetune.trained.trained_folder import TrainedFolder, trained_folder

#: Beside the adapter's two files: where `save_adapter` notes the base's format.
_NOTE = "quantlora.json"


@dataclass(frozen=True)
class TrainedModel:
    """A model that is ready to reply, in evaluation mode."""

    folder: TrainedFolder
    base: BaseModel
    model: PreTrainedModel
    tokenizer: TrainingTokenizer

    @property
    def has_template(self) -> bool:
        return self.tokenizer.has_template

    @contextmanager
    def without_adapter(self) -> Iterator[None]:
        """The bare base within the block."""
        if not self.folder.has_adapter:
            raise FinetuneError(f"{self.folder.path} is a whole model: it has no adapter to leave.")
        with adapters_disabled(self.model):
            yield


def open_trained(path: Path, model: str | None = None) -> TrainedModel:
    """Load what lies at ``path``: an adapter over its base, or a whole model.

    A float base gets the format that the adapter was trained on first; where the files do not
    say it (PEFT's), it stays as it is.

    Args:
        model: the base, where it is another than the files say.

    Raises:
        FinetuneError: see `trained_folder`.
        ConfigError: the base is not there any more.
        AdapterFileError, BackendError, MissingLibraryError: see `quantlora.load_adapter`.
    """
    folder = trained_folder(path, model)
    base = _base(folder)
    loaded = load_model(base, folder.dtype)
    if folder.has_adapter:
        load_adapter(loaded, folder.path, backend=_backend(folder.path))
    if not base.is_quantized:
        move: Any = loaded.to
        move(processes.device())
    loaded.train(False)
    return TrainedModel(folder, base, loaded, TrainingTokenizer(base.tokenizer, folder.options))


def _backend(path: Path) -> str:
    return "saved" if (path / _NOTE).is_file() else "auto"


def _base(folder: TrainedFolder) -> BaseModel:
    try:
        return base_named(folder.base)
    except ConfigError as error:
        if not folder.has_adapter:
            raise
        raise ConfigError(
            f"{folder.path}: the base of its adapter is not to be had: {str(error).rstrip('.')}. "
            f"Where it has moved, name it with --model."
        ) from error
