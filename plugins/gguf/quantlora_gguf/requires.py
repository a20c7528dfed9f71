"""What has to be installed. Imports no torch: the environment report reads it too."""

from __future__ import annotations

from quantlora.requirements import Requirement

#: To pack float layers, and for the names of tensors in files; unpacking needs only torch.
GGUF = Requirement("gguf>=0.10", fix='pip install "quantlora[gguf]"')
