"""Set before the libraries are imported that read it."""

import os

os.environ.setdefault("GPTQMODEL_CPU_WORKERS", "2")
