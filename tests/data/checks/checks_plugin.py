"""A plugin whose checks come to every verdict."""

from quantlora.checks import Check
from quantlora.hookspecs import hookimpl
from quantlora.requirements import Requirement


def fail():
    raise OSError("the table of devices is gone")


@hookimpl
def quantlora_checks():
    return [
        Check("fine", requires=(Requirement("packaging"),)),
        Check("slow", degraded=lambda: ("every product runs on one core", "pip install fastlib")),
        Check(
            "missing",
            requires=(Requirement("lib-a>=1"), Requirement("lib-b>=2", fix="conda install lib-b")),
        ),
        Check("raising", degraded=fail),
    ]
