"""Mixed batches of (time, batch, features), also where the batch is as large as time is long."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import quantlora
from quantlora.errors import AdapterError
from tests.tools.peft_oracle import relative

NAMES = ["a", "b", "__base__", "a"]


class Model(nn.Module):
    """Tokens (time, batch) or (batch, time) through torch's own encoder."""

    def __init__(self, batch_first: bool) -> None:
        super().__init__()
        self.embed = nn.Embedding(11, 8)
        self.inner = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=batch_first)
        self.batch_dim = int(not batch_first)

    def forward(self, ids: Tensor) -> Tensor:
        y: Tensor = self.inner(self.embed(ids))
        return y


def model(batch_first: bool, targets: list[str]) -> Model:
    torch.manual_seed(0)
    one = Model(batch_first)
    for name in ("a", "b"):
        fields = {"r": 2, "init_lora_weights": False, "target_modules": targets}
        quantlora.wrap(one, adapter_name=name, **fields)
    return one.eval()


def alone(one: Model, ids: Tensor, name: str) -> Tensor:
    if name == "__base__":
        with quantlora.adapters_disabled(one):
            return one(ids)
    quantlora.set_adapter(one, name)
    return one(ids)


@pytest.mark.parametrize("time", [4, 5])
@pytest.mark.parametrize("batch_first", [False, True])
def test_the_modules_of_torch_say_which_dimension_it_is(batch_first: bool, time: int) -> None:
    one = model(batch_first, ["linear1", "linear2"])
    dim = one.batch_dim
    ids = torch.randint(0, 11, (len(NAMES), time) if batch_first else (time, len(NAMES)))
    wanted = [alone(one, ids, name).select(dim, i) for i, name in enumerate(NAMES)]
    with quantlora.mixed_batch(one, NAMES):
        found = one(ids)
    assert relative(found.detach(), torch.stack(wanted, dim).detach()) <= 1e-6


@pytest.mark.parametrize("targets", [["embed"], ["embed", "linear1"]])
def test_the_user_says_it_for_other_layers(targets: list[str]) -> None:
    one = model(False, targets)
    ids = torch.randint(0, 11, (len(NAMES), len(NAMES)))
    wanted = [alone(one, ids, name)[:, i] for i, name in enumerate(NAMES)]
    with quantlora.mixed_batch(one, NAMES, batch_dim=1):
        found = one(ids)
    assert relative(found.detach(), torch.stack(wanted, 1).detach()) <= 1e-6


def test_a_number_of_names_that_does_not_fit_tells_of_it() -> None:
    one = model(False, ["embed"])
    with (
        quantlora.mixed_batch(one, NAMES),
        pytest.raises(AdapterError, match=r"mixed_batch\(..., batch_dim=1\)"),
    ):
        one(torch.zeros(5, 4, dtype=torch.long))


def xlnet() -> nn.Module:
    from transformers import XLNetConfig, XLNetModel

    torch.manual_seed(0)
    sizes = {"vocab_size": 11, "d_model": 8, "n_layer": 1, "n_head": 2, "d_inner": 16}
    one = XLNetModel(XLNetConfig(**sizes, dropout=0.0))
    for name in ("a", "b"):
        fields = {"r": 2, "init_lora_weights": False, "target_modules": ["layer_1", "layer_2"]}
        quantlora.wrap(one, adapter_name=name, **fields)
    return one.eval()


def test_xlnet_asks_for_the_dimension() -> None:
    with (
        pytest.raises(AdapterError, match=r"some layers of XLNet\w+ get .*batch_dim=1"),
        quantlora.mixed_batch(xlnet(), NAMES),
    ):
        pass


@pytest.mark.parametrize("time", [4, 5])
def test_xlnet_is_right_with_the_dimension(time: int) -> None:
    one, names = xlnet(), ["a", "b", "b", "a"]
    ids = torch.randint(0, 11, (4, time))
    wanted = []
    for i, name in enumerate(names):
        quantlora.set_adapter(one, name)
        wanted.append(one(ids)[0][i])
    with quantlora.mixed_batch(one, names, batch_dim=1):
        found = one(ids)[0]
    assert relative(found.detach(), torch.stack(wanted).detach()) <= 1e-5
