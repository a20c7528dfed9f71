"""Whatever the shapes, ranks and dtypes: what is saved is what is loaded."""

from __future__ import annotations

import tempfile
from itertools import pairwise

import torch
from hypothesis import given, settings, strategies as st
from torch import nn

import quantlora

SIZES = st.integers(1, 9)
DTYPES = st.sampled_from([torch.float32, torch.float64, torch.bfloat16])


def two_layers(sizes, dtype):
    torch.manual_seed(0)
    layers = [nn.Linear(a, b, dtype=dtype) for a, b in pairwise(sizes)]
    return nn.Sequential(*layers)


@settings(max_examples=30, deadline=None)
@given(st.lists(SIZES, min_size=2, max_size=4), DTYPES, st.data())
def test_tensors_come_back_bit_for_bit(sizes, dtype, data):
    r = data.draw(st.integers(1, min(sizes)))
    flags = {name: data.draw(st.booleans()) for name in ("use_rslora", "lora_bias", "use_dora")}
    name = data.draw(st.sampled_from(["default", "second-one", "a_b"]))
    model = two_layers(sizes, dtype)
    quantlora.wrap(model, r=r, adapter_name=name, init_lora_weights=False, **flags)
    with tempfile.TemporaryDirectory() as folder:
        quantlora.save_adapter(model, folder, name)
        again = quantlora.load_adapter(two_layers(sizes, dtype), folder, name)
    loaded = again.state_dict()
    assert loaded.keys() == model.state_dict().keys()
    assert all(torch.equal(tensor, loaded[key]) for key, tensor in model.state_dict().items())


class Twice(nn.Module):
    """One layer at two paths."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.first = nn.Linear(6, 6)
        self.second = self.first

    def forward(self, x):
        return self.second(self.first(x).tanh())


def test_layer_at_two_paths_is_saved_once_and_loads_at_both(tmp_path):
    model = quantlora.wrap(Twice(), r=2, init_lora_weights=False)
    quantlora.save_adapter(model, tmp_path)
    again = quantlora.load_adapter(Twice(), tmp_path)
    x = torch.randn(3, 6)
    assert torch.equal(again(x), model(x))
    assert again.first is again.second
