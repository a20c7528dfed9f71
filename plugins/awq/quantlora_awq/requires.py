"""What has to be installed. Imports no torch: the environment report reads it too."""

from __future__ import annotations

from quantlora import Check, Requirement

#: Transformers loads AWQ files with its layers.
GPTQMODEL = Requirement("gptqmodel>=7.0.0", fix='BUILD_CUDA_EXT=0 pip install "quantlora[awq]"')

CHECK = Check("awq", requires=(GPTQMODEL,))
