"""``python -m quantlora``: the command line, also for ``torchrun -m quantlora``."""

from quantlora.cli import app

app(prog_name="quantlora")
