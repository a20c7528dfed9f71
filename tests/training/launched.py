"""Trains by Trainer under ``accelerate launch``, or alone: python launched.py FOLDER BACKEND."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from tests.training.trainers import make

if __name__ == "__main__":
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    options = {"per_device_train_batch_size": 4 // processes, "adam_epsilon": 1e-6}
    run = make("Trainer", sys.argv[2], Path(sys.argv[1]), **options)
    run.train()
    run.save_model()
