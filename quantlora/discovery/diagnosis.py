"""What an error of somebody else's library means, and what to type.

The texts are those of CUDA, the dynamic linker and the quantization libraries. `wrap` and the
environment report use the same table, so both give the same remedy.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from quantlora.discovery.entry_points import text_of
from quantlora.errors import BackendError, MissingLibraryError, QuantloraError
from quantlora.requirements import AnyRequirement

if TYPE_CHECKING:
    from quantlora.formats.quantizer import Quantizer


@dataclass(frozen=True)
class Diagnosis:
    """An error text (a regular expression), its cause and its remedy.

    ``{libraries}`` stands for the pip names of the libraries that the backend is made of.
    """

    pattern: str
    cause: str
    fix: str


_REINSTALL = "pip install --upgrade --force-reinstall --no-cache-dir {libraries}"

DIAGNOSES = (
    Diagnosis(
        r"no kernel image is available",
        "the installed {libraries} has no kernels for this GPU's compute capability",
        _REINSTALL,
    ),
    Diagnosis(
        r"CUDA driver version is insufficient|driver on your system is too old",
        "the NVIDIA driver is older than the CUDA version that the libraries were built for",
        "update the NVIDIA driver, or install builds for its CUDA version; see quantlora env",
    ),
    Diagnosis(
        r"lib(cuda\w*|cublas\w*|cusparse\w*|nvJitLink)\.so[.\d]*: cannot open shared object",
        "{libraries} was built for another CUDA version than the one that is installed",
        _REINSTALL,
    ),
    Diagnosis(
        r"undefined symbol",
        "{libraries} was compiled for another version of torch than the one that is installed",
        _REINSTALL,
    ),
    Diagnosis(
        r"GLIBC(XX)?_[\d.]+' not found",
        "{libraries} was compiled for a newer system than this one",
        "pip install --force-reinstall --no-binary :all: {libraries}",
    ),
    Diagnosis(
        r"(?i)exllama(v?2)?(_kernels|\s+kernels?)?\b.*not (be )?(installed|available|found)",
        "the ExLlama kernels are not available, and could not be trained through if they were",
        "load the model with GPTQConfig(bits=..., use_exllama=False)",
    ),
    Diagnosis(
        r"No module named|cannot import name",
        "{libraries} is installed, but incomplete, or does not fit the other libraries here",
        _REINSTALL,
    ),
    Diagnosis(
        r"Torch not compiled with CUDA enabled|Found no NVIDIA driver",
        "{libraries} asks for a GPU that torch cannot use here",
        "see the accelerators in quantlora env",
    ),
)


def diagnose(text: str, requires: Iterable[AnyRequirement]) -> Diagnosis | None:
    """The diagnosis of an error's text, for a backend that needs ``requires``; None: unknown."""
    names = " ".join(need.check().name for need in requires) or "the backend's library"
    for diagnosis in DIAGNOSES:
        if re.search(diagnosis.pattern, text):
            cause, fix = (
                part.replace("{libraries}", names) for part in (diagnosis.cause, diagnosis.fix)
            )
            return Diagnosis(diagnosis.pattern, cause, fix)
    return None


@contextmanager
def diagnosed(quantizer: Quantizer) -> Iterator[None]:
    """Within the block, an upstream error that is known is raised with its cause and remedy."""
    try:
        yield
    except Exception as error:
        found = diagnose(text_of(error), quantizer.requires)
        if found is None:
            raise
        broken = MissingLibraryError if isinstance(error, ImportError) else BackendError
        kind = type(error) if isinstance(error, QuantloraError) else broken
        text = " ".join(text_of(error).split())
        raise kind(
            f"backend {quantizer.name!r} fails here: {found.cause} ({type(error).__name__}: "
            f"{text}).\n{found.fix}"
        ) from error
