"""The adapters a model carries: which there are, which count, whole modules among them."""
