"""What has to be installed. Imports no torch: the environment report reads it too."""

from __future__ import annotations

from quantlora import Check, Note, Requirement

#: For files of gpt-oss; packing and unpacking need only torch.
TRANSFORMERS = Requirement("transformers>=5.0", fix='pip install "transformers>=5"')
ACCELERATE = Requirement("accelerate>=1.1", fix='pip install "accelerate>=1.1"')

KERNEL = Note(
    "Transformers multiplies MXFP4 by a kernel from the hub, for which it needs Triton and the "
    "package kernels, and never trains on it; elsewhere it dequantizes the whole model to "
    "bfloat16. quantlora.load keeps the blocks on every device and multiplies with one "
    "expert dequantized at a time.",
    "Load MXFP4 models with quantlora.load(folder_or_hub_id), not with from_pretrained.",
)

CHECK = Check("mxfp4", requires=(TRANSFORMERS,), notes=lambda: (KERNEL,))
