"""``--report-to``: the trackers that Transformers' Trainer can tell of each step."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from quantlora.errors import ConfigError
from quantlora.requirements import Requirement
from quantlora.suggestions import unknown
from quantlora_finetune.options.adapter import names_in
from quantlora_finetune.run import processes

NONE, TENSORBOARD = "none", "tensorboard"
#: By Transformers' name; kubeflow is there where a job of its runs, without a library.
_LIBRARIES = {
    "azure_ml": ("azureml-core",),
    "clearml": ("clearml",),
    "codecarbon": ("codecarbon",),
    "comet_ml": ("comet-ml",),
    "dagshub": ("dagshub", "mlflow"),
    "dvclive": ("dvclive",),
    "flyte": ("flytekit",),
    "kubeflow": (),
    "mlflow": ("mlflow",),
    "neptune": ("neptune",),
    "swanlab": ("swanlab",),
    TENSORBOARD: ("tensorboard>=2.10",),
    "trackio": ("trackio",),
    "wandb": ("wandb",),
}


def report_libraries(report_to: str) -> list[Requirement]:
    """What has to be installed for the trackers that are named.

    Raises:
        ConfigError: there is no such tracker.
    """
    needed = [library for name in trackers(report_to) for library in _LIBRARIES[name]]
    return [Requirement(spec, fix=f"pip install {_library(spec)}") for spec in needed]


def _library(spec: str) -> str:
    return spec.partition(">")[0]


def trackers(report_to: str) -> list[str]:
    """The names in ``report_to``.

    Raises:
        ConfigError: Transformers has no such tracker.
    """
    names = [name for name in names_in(report_to) if name != NONE]
    for name in names:
        if name not in _LIBRARIES:
            raise ConfigError(unknown("--report-to", name, [NONE, *_LIBRARIES]))
    return names


def reports(report_to: str, folder: Path) -> Sequence[TrainerCallback]:
    """For whoever looks on from outside; only the first process's callbacks write."""
    from transformers.integrations import integration_utils

    names, found = trackers(report_to), list[TrainerCallback]()
    makes: Any = integration_utils.INTEGRATION_TO_CALLBACK
    for name in names:
        if name not in makes:
            raise ConfigError(f"--report-to {name}: this version of Transformers has no such one.")
        found.append(_tensorboard(makes[name], folder) if name == TENSORBOARD else makes[name]())
    return found


def _tensorboard(make: Any, folder: Path) -> TrainerCallback:
    """Writes to ``folder/tensorboard``."""
    from torch.utils.tensorboard import SummaryWriter

    writer = SummaryWriter(str(folder / TENSORBOARD)) if processes.is_first() else None
    callback: TrainerCallback = make(writer)
    return callback
