"""What has to be installed. Imports no torch: the environment report reads it too."""

from __future__ import annotations

from quantlora import Check, Note, Requirement

#: Its `FP8Linear` is what is packed; layers of any library are read.
TRANSFORMERS = Requirement("transformers>=5.0", fix='pip install "transformers>=5"')

#: Why a layer by itself cannot run here.
WHY = "Transformers' kernel for FP8 layers needs a GPU of compute capability 8.9 or newer"

KERNEL = Note(
    f"{WHY}; anywhere else it dequantizes FP8 files while it loads them. Layers that are in FP8 "
    "are trained on every device: quantlora multiplies with the dequantized weight.",
    'To run the merged model without that kernel: merge with mode="dequantize".',
)

CHECK = Check("fp8", requires=(TRANSFORMERS,), notes=lambda: (KERNEL,))
