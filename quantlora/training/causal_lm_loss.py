"""The loss of a language model without the logits of the whole batch.

    loss = Σ_t  logsumexp(W h_t) - (W h_t)[label_t]          over the tokens to predict

With 262,144 tokens in the vocabulary, the logits of a step are its largest tensor. Here tokens that
are not to be predicted (the prompt, the padding) are left out before the head, and the rest goes
through it a few at a time: their logits, and the gradient of h, are done with at once, in forward.
torch's `F.linear_cross_entropy` does the same for one tensor of hidden states; on CPUs it takes
many times as long, and it is not in the older versions.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, cast
from weakref import WeakKeyDictionary

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from quantlora.formats.autocast import autocast_off, working_dtype

#: Logits that are there at one time, and the fewest tokens they are of.
_LOGITS, _TOKENS = 24 << 20, 64
#: The label of a token that is not to be predicted, and the loss that this is, as in Transformers.
_IGNORED, _LOSS = -100, "ForCausalLMLoss"
#: Whether a model returns what its head gives, by model.
_RETURNS_ITS_HEADS: WeakKeyDictionary[nn.Module, bool] = WeakKeyDictionary()
#: The last loss by model, which its outputs do not have: for whoever watches the training.
_LAST: WeakKeyDictionary[nn.Module, Tensor] = WeakKeyDictionary()


def causal_lm_loss(
    model: nn.Module,
    inputs: Mapping[str, Any],
    num_items_in_batch: Tensor | int | None = None,
    *,
    tokens_at_once: int | None = None,
) -> Tensor:
    """What ``model(**inputs).loss`` is, for Transformers' causal language models.

    For a Trainer of your own: ``compute_loss`` of a subclass returns it. A model whose head is not
    a plain frozen linear layer, that changes the logits afterwards (Gemma 2) or has another loss is
    called as it is.

    Args:
        model: the model, also inside `DistributedDataParallel`.
        inputs: its inputs with ``labels`` ``(batch, length)``; -100 is not predicted.
        num_items_in_batch: what the sum is divided by, as Trainer counts it over accumulated
            batches; by default the tokens to predict.
        tokens_at_once: tokens whose logits are there at one time; as many as 96 MiB hold.

    Returns:
        The loss, of no dimensions, with its gradient.
    """
    inner = cast(nn.Module, getattr(model, "module", model))
    head = None if isinstance(model, nn.DataParallel) else _head(inner)
    if head is None or inputs.get("labels") is None or not _RETURNS_ITS_HEADS.get(inner, True):
        return _ordinary(model, inputs, num_items_in_batch)
    labels = inputs["labels"]
    with _passed_through(head) as seen:
        outputs = model(**{key: value for key, value in inputs.items() if key != "labels"})
    if not _fits(inner, outputs, seen, labels):
        return _ordinary(model, inputs, num_items_in_batch)
    loss = _loss(seen[0], labels, head, num_items_in_batch, tokens_at_once or _at_once(head))
    _LAST[inner] = loss.detach()
    return loss


def take_last_loss(model: nn.Module) -> Tensor | None:
    """The last loss of ``model``, once; None where its own forward gave it."""
    return _LAST.pop(model, None)


def logits_bytes(model: nn.Module, tokens: int) -> int:
    """Bytes that logits of a batch with ``tokens`` to predict take at once.

    0 where the model is called as it is.
    """
    head = _head(model)
    if head is None or not _RETURNS_ITS_HEADS.get(model, True):
        return 0
    itemsize = head.weight.itemsize
    each = 4 + (itemsize if itemsize < 4 else 0)
    return min(tokens, _at_once(head)) * head.weight.shape[0] * each


def _at_once(head: nn.Linear) -> int:
    return max(_TOKENS, _LOGITS // head.weight.shape[0])


def _ordinary(model: nn.Module, inputs: Mapping[str, Any], items: Tensor | int | None) -> Tensor:
    more = {} if items is None else {"num_items_in_batch": items}
    outputs = model(**inputs, **more)
    return cast(Tensor, outputs["loss"] if isinstance(outputs, dict) else outputs[0])


def _head(model: nn.Module) -> nn.Linear | None:
    """The output embeddings, where they are a frozen linear layer and nothing is done to them."""
    get = getattr(model, "get_output_embeddings", None)
    loss = getattr(model, "loss_function", None)
    head = get() if callable(get) and getattr(loss, "__name__", "") == _LOSS else None
    if type(head) is not nn.Linear or "forward" in vars(head):
        return None
    hooks = (head._forward_hooks, head._forward_pre_hooks, head._backward_hooks)
    if any(hooks) or any(parameter.requires_grad for parameter in head.parameters()):
        return None
    return head if type(head.weight) in (Tensor, nn.Parameter) else None


@contextmanager
def _passed_through(head: nn.Linear) -> Iterator[list[Tensor]]:
    """Within the block ``head`` gives back its input, which is noted."""
    seen: list[Tensor] = []

    def forward(hidden: Tensor) -> Tensor:
        seen.append(hidden)
        return hidden

    vars(head)["forward"] = forward
    try:
        yield seen
    finally:
        del vars(head)["forward"]


def _fits(model: nn.Module, outputs: Any, seen: list[Tensor], labels: Tensor) -> bool:
    """Whether the outputs are what the head gave for every token, and the loss is of them alone."""
    if len(seen) != 1 or seen[0].shape[:-1] != labels.shape:
        return False
    if getattr(outputs, "aux_loss", None) is not None:
        return False
    if model not in _RETURNS_ITS_HEADS:
        logits = getattr(outputs, "logits", None)
        same = logits is not None and torch.equal(logits, seen[0].to(logits.dtype))
        _RETURNS_ITS_HEADS[model] = bool(same)
    return _RETURNS_ITS_HEADS[model]


def _loss(
    hidden: Tensor, labels: Tensor, head: nn.Linear, items: Tensor | int | None, rows: int
) -> Tensor:
    targets = labels[:, 1:].to(hidden.device)
    where = targets != _IGNORED
    chosen, targets = hidden[:, :-1][where], targets[where]
    total: Tensor = _Summed.apply(  # type: ignore[no-untyped-call]
        chosen, head.weight, head.bias, targets, rows
    )
    if isinstance(items, Tensor):
        items = items.to(total.device)
    return total / (len(targets) if items is None else items)


class _Summed(torch.autograd.Function):
    """The sum over the tokens; the gradient of h is found on the way, and kept in its dtype."""

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, rows: int
    ) -> Tensor:
        dtype = working_dtype(hidden, hidden.dtype)
        weight = weight.to(dtype)
        bias = None if bias is None else bias.to(dtype)
        grad = torch.empty_like(hidden) if ctx.needs_input_grad[0] else None
        total = torch.zeros((), dtype=torch.promote_types(dtype, torch.float32)).to(hidden.device)
        with autocast_off(hidden):
            for begin in range(0, len(hidden), rows):
                own = slice(begin, begin + rows)
                logits = F.linear(hidden[own].to(dtype), weight, bias).to(total.dtype)
                total += _sum_with_slope(logits, targets[own])
                if grad is not None:
                    grad[own] = logits.to(dtype) @ weight
                del logits  # or it is there beside the next rows' logits
        ctx.save_for_backward(grad)
        return total

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None, None]:
        if torch.is_grad_enabled():
            raise RuntimeError("causal_lm_loss has no second derivative: use model(**inputs).loss.")
        (own,) = ctx.saved_tensors
        return own * grad.to(own.dtype), None, None, None, None


def _sum_with_slope(logits: Tensor, targets: Tensor) -> Tensor:
    """The loss of ``logits`` ``(N, vocabulary)``, which become softmax less one-hot: its slope."""
    targets = targets[:, None]
    own, top = logits.gather(1, targets), logits.amax(1, keepdim=True)
    total = logits.sub_(top).exp_().sum(1, keepdim=True)
    logits.div_(total).scatter_add_(1, targets, -torch.ones_like(own))
    return (total.log() + top - own).sum()
