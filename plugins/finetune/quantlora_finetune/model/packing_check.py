"""Whether a model keeps examples of one row apart, tried before it is trained on packed rows."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor
from transformers import PreTrainedModel

from quantlora.errors import ConfigError

#: Tokens of an example and of the one after it; several convolutions' widths.
_FIRST, _SECOND = 11, 9
#: How far rounding goes, in units of the dtype's precision, beside the largest logit: between two
#: calls of the same shapes, and of the same tokens elsewhere in a row.
_SAME_SHAPES, _ELSEWHERE = 4, 32


@torch.no_grad()
def check_packing(model: PreTrainedModel, padding: int) -> None:
    """Try it on two short rows.

    Raises:
        ConfigError: the second example's outputs depend on the first's tokens, or are others than
            those it has in a row of its own.
    """
    was_training = model.training
    model.train(False)
    try:
        found, changed, alone = _logits(model, padding)
    except TypeError as error:
        raise _refused(model, "it takes no position_ids") from error
    finally:
        model.train(was_training)
    unit = torch.finfo(found.dtype).eps * float(found.float().abs().max())
    if _distance(found, changed) > _SAME_SHAPES * unit:
        raise _refused(model, "an example sees the one before it in its row")
    if _distance(found, alone) > _ELSEWHERE * unit:
        raise _refused(model, "it gives an example other outputs there than in a row of its own")


def _logits(model: PreTrainedModel, padding: int) -> tuple[Tensor, Tensor, Tensor]:
    """Of the second example: packed, packed behind other tokens, and alone."""
    size = int(model.config.get_text_config().vocab_size)
    first, other, second = (
        [(start + 7 * i) % size for i in range(count)]
        for start, count in ((3, _FIRST), (5, _FIRST), (4, _SECOND))
    )
    positions = [*range(_FIRST), *range(_SECOND)]
    packed = [_run(model, [*tokens, *second], positions)[-_SECOND:] for tokens in (first, other)]
    filled = [*second, *[padding] * _FIRST]
    alone = _run(model, filled, [*range(_SECOND), *[0] * _FIRST])[:_SECOND]
    return packed[0], packed[1], alone


def _run(model: PreTrainedModel, tokens: list[int], positions: list[int]) -> Tensor:
    """The logits of a row, in a batch of two."""
    ids, position_ids = (
        torch.tensor([values, values], device=model.device) for values in (tokens, positions)
    )
    call: Any = model
    return cast(Tensor, call(input_ids=ids, position_ids=position_ids, use_cache=False).logits[0])


def _distance(a: Tensor, b: Tensor) -> float:
    """inf where there is no number."""
    largest = float((a.float() - b.float()).abs().max())
    return largest if largest == largest else float("inf")


def _refused(model: PreTrainedModel, why: str) -> ConfigError:
    return ConfigError(
        f"--packing: {type(model).__name__} cannot be trained on packed rows: {why}. Leave it out."
    )
