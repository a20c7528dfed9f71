"""What has to be installed. Imports no torch: the environment report reads it too."""

from __future__ import annotations

from quantlora import Check, Requirement

TORCHAO = Requirement("torchao>=0.15", fix='pip install "quantlora[torchao]"')

CHECK = Check("torchao", requires=(TORCHAO,))
