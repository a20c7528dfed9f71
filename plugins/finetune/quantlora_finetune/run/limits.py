"""What a run needs of the machine, checked first where it can be, explained where it cannot."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from quantlora.errors import FinetuneError
from quantlora.requirements import Requirement
from quantlora_finetune.model.cache import require_space
from quantlora_finetune.options.choices import TrainerName
from quantlora_finetune.options.finetune_options import FinetuneOptions
from quantlora_finetune.training.optimizers import check_optimizer, optimizer_libraries
from quantlora_finetune.training.reports import report_libraries
from quantlora_finetune.training.reward import reward_function
from quantlora_finetune.training.schedules import check_scheduler

_TRL = [Requirement(spec, fix="pip install trl datasets") for spec in ("trl>=0.20", "datasets>=3")]
_LIBRARIES = tuple(
    Requirement(spec, fix='pip install "quantlora[demo]"')
    for spec in ("accelerate>=1.1", "jinja2>=3.1", "matplotlib>=3.7")
)
#: Copies of the adapter, in float32, that lie in the output folder at most: three checkpoints
#: with the adapter, the same for Trainer and two moments each, and the result.
_COPIES = 3 * 4 + 1
_OTHER_FILES = 50_000_000
#: What the system says when a file cannot be written.
_REFUSALS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EACCES, errno.EROFS)
#: What `torch.save` says of it: its writer keeps the system's word to itself.
_TORCH_REFUSALS = ("PytorchStreamWriter failed", "inline_container.cc")


def require_libraries(options: FinetuneOptions) -> None:
    """Raise `MissingLibraryError`, with the line that brings it, where one is not here."""
    wanted = list(_LIBRARIES)
    wanted += [*report_libraries(options.report_to), *optimizer_libraries(options.optim)]
    wanted += _TRL if options.trainer is not TrainerName.TRANSFORMERS else []
    for library in wanted:
        library.check().require()
    check_optimizer(options)
    check_scheduler(options)
    if options.reward is not None:
        reward_function(options.reward)


def require_disk(folder: Path, trained_parameters: int) -> None:
    """Raise `FinetuneError` where the checkpoints would not fit on the disk."""
    need = _COPIES * 4 * trained_parameters + _OTHER_FILES
    require_space(existing(folder), need, "name another folder with --output")


def existing(folder: Path) -> Path:
    """``folder``, or the nearest one above it that exists."""
    whole = folder.absolute()
    return next(path for path in (whole, *whole.parents) if path.exists())


@contextmanager
def explained(options: FinetuneOptions) -> Iterator[None]:
    """Turn the machine's refusals within the block into a `FinetuneError` that says what helps."""
    try:
        yield
    except (torch.OutOfMemoryError, MemoryError) as error:
        raise FinetuneError(
            f"out of memory with examples of {options.length} tokens, {options.batch_size} at a "
            f"time. Use --batch-size 1 with --accumulate {options.batch_size}, a smaller --length, "
            f"--gradient-checkpointing, or fewer --bits. Continue with --resume where a step was "
            f"made."
        ) from error
    except OSError as error:
        if error.errno not in _REFUSALS:
            raise
        raise _not_written(error.filename or options.output, error.strerror) from error
    except RuntimeError as error:
        if not any(text in str(error) for text in _TORCH_REFUSALS):
            raise
        raise _not_written(options.output, "the disk is full, or failed") from error


def _not_written(path: object, why: str | None) -> FinetuneError:
    return FinetuneError(f"{path} cannot be written: {why}. Fix this, then continue with --resume.")
