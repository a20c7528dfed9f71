"""``quantlora inspect``: what `wrap` would do to a model, from its config alone; and its memory.

`meta_model` builds the model without weights, `checkpoint_format` reads in which format its
checkpoint is, `sizes` measures what a weight costs in each format, `report` puts it together,
`show` prints it.

`memory_estimate` predicts what training a model in memory takes: `memory` counts its parts,
`live_bytes` follows what a forward and backward make.
"""
