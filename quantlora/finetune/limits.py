"""What a run needs of the machine, checked first where it can be, explained where it cannot."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from quantlora.errors import FinetuneError
from quantlora.finetune.cache import require_space
from quantlora.finetune.option_fields import ReportTo
from quantlora.finetune.options import FinetuneOptions
from quantlora.requirements import Requirement

_TENSORBOARD = Requirement("tensorboard>=2.10", fix="pip install tensorboard")
_LIBRARIES = tuple(
    Requirement(spec, fix='pip install "quantlora[demo]"')
    for spec in ("accelerate>=1.1", "matplotlib>=3.7")
)
#: Copies of the adapter, in float32, that lie in the output folder at most: three checkpoints
#: with the adapter, the same for Trainer and two moments each, and the result.
_COPIES = 3 * 4 + 1
_OTHER_FILES = 50_000_000


def require_libraries(options: FinetuneOptions) -> None:
    """Raise `MissingLibraryError`, with the line that brings it, where one is not here."""
    wanted = [_TENSORBOARD] if options.report_to is ReportTo.TENSORBOARD else []
    for library in (*_LIBRARIES, *wanted):
        library.check().require()


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
            f"--gradient-checkpointing, or fewer --bits. Go on with --resume where a step was made."
        ) from error
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS):
            raise
        raise FinetuneError(
            f"{error.filename or options.output} cannot be written: {error.strerror}. Mend it, "
            f"then go on with --resume."
        ) from error
