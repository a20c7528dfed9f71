"""The public names of quantlora_qalora."""

from .layer import QaloraLinear as QaloraLinear
