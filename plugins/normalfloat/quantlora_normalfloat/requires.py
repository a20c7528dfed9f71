"""What has to be installed. Imports no torch: the environment report reads it too."""

from __future__ import annotations

from quantlora.requirements import Requirement

#: For the quantiles of the normal distribution; needed to pack, not to read.
SCIPY = Requirement(
    "scipy>=1.10",
    missing="The required package 'scipy' is not installed. Please install it to continue.",
    fix='pip install "quantlora[normalfloat]"',
)
