"""The one place where bitsandbytes is imported, late: it takes seconds."""

from __future__ import annotations

import logging
import sys
from typing import Any


def library() -> Any:
    """The package, without the line it prints when imported on a CPU with AVX512-BF16.

    That line asks for an inference kernel which we never use.
    """
    if "bitsandbytes" not in sys.modules:
        logging.getLogger("bitsandbytes.backends.cpu.ops").addFilter(_is_not_about_the_kernel)
    import bitsandbytes

    return bitsandbytes


def _is_not_about_the_kernel(record: logging.LogRecord) -> bool:
    return "gemm_4bit_forward" not in record.getMessage()
