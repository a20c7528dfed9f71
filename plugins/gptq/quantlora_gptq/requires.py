"""The two libraries that bring GPTQ layers: which is here, which is used, which reads what wrong.

Metadata only; neither torch nor the libraries are imported.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from packaging.specifiers import SpecifierSet

from quantlora import AllOf, AnyOf, Check, Note, Requirement

GPTQMODEL = Requirement(
    "gptqmodel>=2.0.0",
    fix='BUILD_CUDA_EXT=0 pip install "gptqmodel>=2.0.0" "optimum>=1.24.0"',
    incompatible=(
        "Found an incompatible version of gptqmodel. Found version {found}, "
        "but only versions 2.0.0 and above are supported"
    ),
)
OPTIMUM = Requirement(
    "optimum>=1.24.0",
    missing="gptqmodel requires optimum version `1.24.0` or higher to be installed.",
    incompatible="gptqmodel requires optimum version `1.24.0` or higher to be installed.",
)
AUTO_GPTQ = Requirement(
    "auto-gptq>=0.5.0",
    fix='pip install "auto-gptq>=0.5.0" "transformers<5"',
    incompatible=(
        "Found an incompatible version of auto-gptq. Found version {found}, "
        "but only versions above 0.5.0 are supported"
    ),
)
#: auto-gptq imports `no_init_weights`, which transformers 5 does not have any more.
OLD_TRANSFORMERS = Requirement(
    "transformers<5",
    fix='pip install "auto-gptq>=0.5.0" "transformers<5"',
    incompatible="auto-gptq cannot be imported with transformers {found}: it needs transformers<5.",
)

#: By the import name of the library a layer comes from.
LIBRARIES: dict[str, AllOf] = {
    "gptqmodel": AllOf((GPTQMODEL, OPTIMUM)),
    "auto_gptq": AllOf((AUTO_GPTQ, OLD_TRANSFORMERS)),
}

REQUIRES = AnyOf(
    tuple(LIBRARIES.values()),
    order="Transformers and optimum load GPTQ checkpoints with gptqmodel where they find it, and "
    "it quantizes; layers that auto-gptq itself has loaded are wrapped as well",
)

#: What to load a model with whose kernel cannot be trained through.
REMEDY = {
    "gptqmodel": (
        "Load the model with a kernel that can be trained: "
        'GPTQConfig(bits=..., backend="auto_trainable") for from_pretrained, '
        'backend="auto_trainable" for GPTQModel.load; "gptq_torch" always can be.'
    ),
    "auto_gptq": (
        "Load the model with a kernel that can be trained: GPTQConfig(bits=..., "
        "use_exllama=False) for from_pretrained, disable_exllama=True, disable_exllamav2=True, "
        "use_marlin=False for AutoGPTQForCausalLM.from_quantized."
    ),
}

#: By library: which kernels are refused at wrap time.
KERNELS = {
    "gptqmodel": Note(
        "Marlin, Machete, ExLlama, BitBLAS and other kernels are for inference only: gradients "
        "do not pass, or are wrong. wrap refuses layers that use them.",
        REMEDY["gptqmodel"],
    ),
    "auto_gptq": Note(
        "ExLlama and Marlin kernels repack the weight for inference, and ExLlama may not be "
        "available at all. wrap refuses layers that use them.",
        REMEDY["auto_gptq"],
    ),
}


def _notes() -> Iterator[Note]:
    """Of the libraries that are here: the kernels, and what their versions read wrong."""
    for library, need in LIBRARIES.items():
        found = need.parts[0].check()
        if found and found.version:
            yield KERNELS[library]
            yield from (
                wrong.note for wrong in WRONG_READINGS if wrong.concerns(library, found.version)
            )


CHECK = Check("gptq", requires=(REQUIRES,), notes=_notes)


def library_of(layer: object) -> str | None:
    """``"gptqmodel"`` or ``"auto_gptq"``, by where the layer's classes come from."""
    roots = (cls.__module__.partition(".")[0] for cls in type(layer).__mro__)
    return next((root for root in roots if root in LIBRARIES), None)


@dataclass(frozen=True)
class WrongReading:
    """Checkpoints that some versions of a library read wrong, without an error of their own."""

    library: str
    versions: str
    checkpoint_format: str
    bits: tuple[int, ...]
    reason: str
    fix: str

    def applies(self, library: str, version: str, checkpoint_format: str, bits: int) -> bool:
        return (
            checkpoint_format == self.checkpoint_format
            and bits in self.bits
            and self.concerns(library, version)
        )

    def concerns(self, library: str, version: str) -> bool:
        """Whether this version has the fault."""
        return library == self.library and version in SpecifierSet(self.versions, prereleases=True)

    @property
    def note(self) -> Note:
        bits = ", ".join(map(str, self.bits))
        return Note(
            f"{self.library} {self.versions} reads {bits}-bit checkpoints of the format "
            f"{self.checkpoint_format!r} wrong: {self.reason}. wrap refuses them.",
            self.fix,
        )


#: Found by loading (2.0.0, 2.2.0, 5.8.0, 0.7.1) and by reading the sources in between.
WRONG_READINGS = (
    WrongReading(
        "gptqmodel", "<2.1.0", "gptq", (2, 3, 4, 8),
        "it leaves the zero-points of v1 checkpoints as they are stored, one too small",
        'pip install "gptqmodel>=2.1.0"',
    ),
    WrongReading(
        "gptqmodel", "<7.0.0", "gptq", (3,),
        "it converts the 3-bit zero-points of v1 checkpoints, which straddle words, wrongly",
        'pip install "gptqmodel>=7.0.0"',
    ),
    WrongReading(
        "auto_gptq", "", "gptq_v2", (2, 3, 4, 8),
        "it adds 1 to zero-points that are complete in v2 checkpoints",
        'pip uninstall auto-gptq; pip install "gptqmodel>=2.0.0" "optimum>=1.24.0"',
    ),
)  # fmt: skip


def wrong_reading(
    library: str, version: str, checkpoint_format: str, bits: int
) -> WrongReading | None:
    """What this version is known to do wrong with such a checkpoint, if anything."""
    matching = (
        wrong
        for wrong in WRONG_READINGS
        if wrong.applies(library, version, checkpoint_format, bits)
    )
    return next(matching, None)
