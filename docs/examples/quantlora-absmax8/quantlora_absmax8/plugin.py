"""The hooks. Everybody who has this installed loads it, so it imports nothing heavy."""

from quantlora.checks import Check
from quantlora.hookspecs import hookimpl


@hookimpl
def quantlora_quantizers():
    from quantlora_absmax8.quantizer import Absmax8Quantizer

    return [Absmax8Quantizer()]


@hookimpl
def quantlora_checks():
    return [Check("absmax8")]
