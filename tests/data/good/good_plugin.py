"""A plugin that implements every hook."""

from quantlora.checks import Check
from quantlora.hookspecs import hookimpl


@hookimpl
def quantlora_quantizers():
    from good_layers import HalvedQuantizer

    return [HalvedQuantizer()]


@hookimpl
def quantlora_layer_wrappers():
    from good_layers import NegatedLora

    return [NegatedLora]


@hookimpl
def quantlora_initializers():
    from good_layers import Ones

    return [Ones()]


@hookimpl
def quantlora_loaders():
    from good_layers import GoodFiles

    return [GoodFiles()]


@hookimpl
def quantlora_checks():
    return [Check("halved"), Check("negated"), Check("ones")]


def say_it(word: str, times: int = 1) -> None:
    """Say a word."""
    print(" ".join([word] * times))


@hookimpl
def quantlora_commands():
    return [say_it]
