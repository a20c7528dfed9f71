"""The output folder, and what the machine must have."""
