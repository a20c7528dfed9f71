"""What has to be installed. Imports no torch: the environment report reads it too."""

from __future__ import annotations

from quantlora import Check, Requirement

QUANTO = Requirement("optimum-quanto>=0.2.7", fix='pip install "quantlora[quanto]"')

CHECK = Check("quanto", requires=(QUANTO,))
