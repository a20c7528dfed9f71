"""What has to be installed. Imports no torch: the environment report reads it too."""

from __future__ import annotations

from quantlora import Check, Requirement

HQQ = Requirement("hqq>=0.2.1", fix='pip install "quantlora[hqq]"')

CHECK = Check("hqq", requires=(HQQ,))
