"""The steps, their checkpoints and their speed."""
