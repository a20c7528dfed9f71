"""What has to be installed. Imports no torch: the environment report reads it too."""

from __future__ import annotations

from quantlora import Check, Note, Requirement

LIBRARY = Requirement(
    "compressed-tensors>=0.20.0", fix='pip install "quantlora[compressed-tensors]"'
)

DECOMPRESSION = Note(
    "The library decompresses the whole model at its first forward. wrap keeps the layers of the "
    "adapter packed, and decompresses those that get none.",
    'Target all linear layers (target_modules="all-linear"), so that all of them stay packed.',
)

CHECK = Check("compressed_tensors", requires=(LIBRARY,), notes=lambda: (DECOMPRESSION,))
