"""What has to be installed. Imports no torch: the environment report reads it too."""

from __future__ import annotations

from quantlora import Check, Note, Requirement

TRANSFORMERS = Requirement("transformers>=5.23", fix='pip install "transformers>=5.23"')

ACTIVATIONS = Note(
    "A Gemma checkpoint of this format may round what goes into a layer and what comes out (static "
    "range quantization). quantlora trains without that rounding, as it trains on other formats "
    "that quantize activations.",
    "Compare the merged model by itself before you serve it.",
)

CHECK = Check("gemma_quant", requires=(TRANSFORMERS,), notes=lambda: (ACTIVATIONS,))
