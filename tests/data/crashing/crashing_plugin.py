"""Formats that go wrong when they are run: a crash, an exit, a hang, wrong arithmetic."""

from quantlora.checks import Check
from quantlora.hookspecs import hookimpl

NAMES = ("segfault", "leaves", "hangs", "leaves_one", "leaves_one_and_hangs", "drifts", "raises")


@hookimpl
def quantlora_quantizers():
    import crashing_formats

    return crashing_formats.all_formats()


@hookimpl
def quantlora_checks():
    return [Check(name) for name in NAMES]
