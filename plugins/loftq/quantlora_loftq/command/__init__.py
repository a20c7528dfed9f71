"""``quantlora loftq``: quantize a model layer by layer, with LoftQ's adapter beside it."""
