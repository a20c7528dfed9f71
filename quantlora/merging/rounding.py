"""What packing does to a merged update; said by the merge and by the environment report."""

from quantlora.checks import Note

ROUNDING = Note(
    "merging packs the weight again, and what of an update is smaller than a packing step is "
    "rounded away: quantlora.merge returns each layer's loss, and warns where most of it is lost",
    'Use mode="dequantize" for a float layer, or keep the adapter unmerged '
    "(quantlora.unmerge(model) takes it out, bit for bit).",
)
