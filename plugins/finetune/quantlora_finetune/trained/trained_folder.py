"""A folder that a training has left: which base its adapter wants, as its own files say it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from quantlora.errors import FinetuneError
from quantlora_finetune.options.choices import Dtype
from quantlora_finetune.options.finetune_options import FinetuneOptions
from quantlora_finetune.run.run_folder import RUN
from quantlora_finetune.run.run_record import started_with

CONFIG = "adapter_config.json"
_LIMIT = 16 << 20


@dataclass(frozen=True)
class TrainedFolder:
    """An adapter's folder, or a plain model's (a merged one).

    Args:
        base: the base's folder or hub id; None: the demonstration's model.
        options: those of the run that trained the adapter, where `quantlora finetune` did.
    """

    path: Path
    has_adapter: bool
    base: str | None
    options: FinetuneOptions | None

    @property
    def dtype(self) -> Dtype:
        """What the training computed in."""
        return self.options.dtype if self.options else Dtype.AUTO


def trained_folder(path: Path, model: str | None = None) -> TrainedFolder:
    """What lies at ``path``.

    Args:
        model: the base, where it is another than the files say or they say none.

    Raises:
        FinetuneError: there is no adapter and no model in it, or its files cannot be read.
    """
    path = path.expanduser()
    if not path.is_dir():
        raise FinetuneError(f"there is no folder {path} (looked in {Path.cwd()}).")
    if not (path / CONFIG).is_file():
        return _plain_model(path, model)
    record = _json(path / RUN) if (path / RUN).is_file() else {}
    options = started_with(path / RUN, record) if record else None
    if model is not None or options is None:
        return TrainedFolder(path, True, model or _base_in(path), options)
    return TrainedFolder(path, True, options.model, options)


def _plain_model(path: Path, model: str | None) -> TrainedFolder:
    if not (path / "config.json").is_file():
        inside = sorted(str(file.parent) for file in path.glob(f"*/{CONFIG}"))
        if inside:
            raise FinetuneError(
                f"{path} is no adapter, but holds some: name " + " or ".join(inside) + "."
            )
        begun = " The run in it has not ended yet." if (path / RUN).is_file() else ""
        raise FinetuneError(
            f"{path}: there is no {CONFIG}, so no adapter, and no config.json, so no model.{begun} "
            f"Name the --output of a finished `quantlora finetune`, or of `quantlora merge`."
        )
    if model is not None:
        raise FinetuneError(f"{path} is a whole model: leave --model out, which is for adapters.")
    return TrainedFolder(path, False, str(path), None)


def _base_in(path: Path) -> str:
    base = _json(path / CONFIG).get("base_model_name_or_path")
    if not (isinstance(base, str) and base):
        raise FinetuneError(
            f"{path / CONFIG} does not say which model the adapter is for: name it with --model."
        )
    return base


def _json(file: Path) -> dict[str, Any]:
    try:
        if file.stat().st_size > _LIMIT:
            raise ValueError(f"larger than {_LIMIT >> 20} MiB")
        found = json.loads(file.read_text("utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise FinetuneError(f"{file} cannot be read: {error}") from error
    if not isinstance(found, dict):
        raise FinetuneError(f"{file} is no JSON object.")
    return found
