"""Models from disk: packed while their tensors arrive, and packed checkpoints."""
