"""What packing does to a merged update; said by the merge and by the environment report."""

from quantlora.checks import Note

ROUNDING = Note(
    "merging packs the weight again, and what of an update is smaller than a packing step is "
    "rounded away: quantlora.merge returns the loss of each layer, and warns where it is most of it",
    'Use mode="dequantize" for a float layer, or keep the adapter unmerged '
    "(quantlora.unmerge(model) takes it out, bit for bit).",
)
