"""Several processes: what must be set before a model is shared out, and how shards become whole."""
