"""The loss by parts of the batch is the model's own, and so are its gradients."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import quantlora
from quantlora.inspection.live_bytes import LiveBytes
from quantlora.operations.reference import float64, relative
from quantlora.testing.models import tiny_llama
from quantlora.training import causal_lm_loss as room


def wrapped(dtype: torch.dtype = torch.float32, **config: Any) -> nn.Module:
    model = tiny_llama(num_hidden_layers=1, **config).to(dtype)
    return quantlora.wrap(model, r=2, init_lora_weights=False).train()


def batch(ignored: int = 3) -> dict[str, Any]:
    """Two sequences of which the first ``ignored`` tokens, and one within, are not predicted."""
    ids = torch.arange(3, 19).view(2, 8)
    labels = ids.clone()
    labels[:, :ignored] = labels[1, 5] = -100
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels}


def gradients(model: nn.Module, loss: Tensor) -> list[Tensor]:
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    return [loss.detach(), *torch.autograd.grad(loss, parameters)]


def check(model: nn.Module, items: Any = None, limit: float = 1e-5, **fields: Any) -> None:
    more = {} if items is None else {"num_items_in_batch": items}
    wanted = gradients(model, model(**batch(), **more).loss)
    found = gradients(model, quantlora.causal_lm_loss(model, batch(), items, **fields))
    for one, other in zip(found, wanted, strict=True):
        assert relative(one, float64(other)) <= limit


@pytest.mark.parametrize("tokens", [None, 1, 3])
@pytest.mark.parametrize("items", [None, 17, torch.tensor(17)], ids=str)
def test_it_is_the_models_own(tokens: int | None, items: Any) -> None:
    check(wrapped(), items, tokens_at_once=tokens)


def test_it_is_near_the_models_own_in_bfloat16() -> None:
    check(wrapped(torch.bfloat16), limit=3e-2)


def test_it_follows_autocast() -> None:
    with torch.autocast("cpu", torch.bfloat16):
        check(wrapped(), limit=3e-2)


def test_it_follows_gradient_checkpointing() -> None:
    model = wrapped()
    model.gradient_checkpointing_enable({"use_reentrant": False})
    check(model)


def test_a_batch_without_a_token_to_predict_is_as_the_models_own() -> None:
    given = batch(ignored=8)
    assert quantlora.causal_lm_loss(wrapped(), given, 5) == 0
    assert quantlora.causal_lm_loss(wrapped(), given).isnan()


def test_the_head_is_as_it_was_also_after_an_error() -> None:
    model = wrapped()
    logits = model(**batch()).logits
    with pytest.raises(ValueError, match="input_ids"):
        quantlora.causal_lm_loss(model, {**batch(), "input_ids": None})
    assert torch.equal(model(**batch()).logits, logits)


def parts(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many tokens each call of the loss by parts is given."""
    counts: list[int] = []
    original = room._loss
    monkeypatch.setattr(room, "_loss", lambda *a: (counts.append(a[1].numel()), original(*a))[1])
    return counts


def test_a_plain_model_takes_it_by_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    counts = parts(monkeypatch)
    check(wrapped())
    assert counts == [16]


class Softened:
    """Put where the model's own forward is: it changes the logits, as Gemma 2 does."""

    def __init__(self, model: nn.Module) -> None:
        self.own, self.loss = model.forward, model.loss_function

    def __call__(self, labels: Tensor | None = None, **kwargs: Any) -> Any:
        outputs = self.own(**kwargs)
        outputs["logits"] = outputs.logits.tanh()
        if labels is not None:
            outputs["loss"] = self.loss(outputs.logits, labels, outputs.logits.shape[-1])
        return outputs


def test_a_model_that_changes_its_logits_is_called_as_it_is(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model, counts = wrapped(), parts(monkeypatch)
    model.forward = Softened(model)
    for _ in range(2):
        given = batch()
        assert torch.equal(quantlora.causal_lm_loss(model, given), model(**given).loss)
    assert counts == []


@pytest.mark.parametrize("what", ["trained", "adapter", "hook", "other loss"])
def test_other_heads_and_losses_are_called_as_they_are(
    what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    counts, model = parts(monkeypatch), wrapped()
    if what == "trained":
        model.lm_head.weight.requires_grad_(True)
    elif what == "adapter":
        model = quantlora.wrap(tiny_llama(), r=2, target_modules=["lm_head"])
    elif what == "hook":
        model.lm_head.register_forward_hook(lambda module, args, y: 2 * y)
    else:
        model.loss_function = lambda logits, labels, *args, **kwargs: logits.mean()
    assert torch.equal(quantlora.causal_lm_loss(model, batch()), model(**batch()).loss)
    assert counts == []


def test_the_logits_of_the_batch_are_never_there_at_once() -> None:
    model = wrapped(vocab_size=4096)
    ids = torch.arange(2 * 256).view(2, 256)
    peaks = []
    for loss in (
        lambda: model(input_ids=ids, labels=ids).loss,
        lambda: quantlora.causal_lm_loss(
            model, {"input_ids": ids, "labels": ids}, tokens_at_once=32
        ),
    ):
        with LiveBytes() as live:
            loss().backward()
        peaks.append(live.peak())
    whole = 2 * 256 * 4096 * 4
    assert peaks[0] > whole
    assert peaks[1] < whole / 2


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("size", [(4, 64), (2, 200)], ids=str)
def test_the_prediction_of_memory_follows(
    size: tuple[int, int], dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(room, "_LOGITS", 1 << 20)  # many parts, as with a large vocabulary
    model, (count, length) = wrapped(dtype, vocab_size=8192), size
    estimate = quantlora.memory_estimate(model, batch_size=count, length=length, chunked_loss=True)
    ids = torch.zeros(count, length, dtype=torch.long)
    given = {"input_ids": ids, "labels": ids, "attention_mask": torch.ones_like(ids)}
    with LiveBytes() as live:
        quantlora.causal_lm_loss(model, {**given, "use_cache": False}).backward()
        trained = [p.grad for p in model.parameters() if p.grad is not None]
        peak = live.peak(without=trained)
    assert 0.95 * peak <= estimate.activations <= 1.1 * peak, (peak, estimate.activations)
