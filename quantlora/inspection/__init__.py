"""``quantlora inspect``: what `wrap` would do to a model, from its config alone.

`skeleton` builds the model without weights, `stored` reads in which format its checkpoint is,
`sizes` measures what a weight costs in each format, `report` puts it together, `show` prints it.
"""
