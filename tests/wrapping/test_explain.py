"""`explain` shows the plan of `wrap`, changes nothing, and shows errors instead of raising them."""

from __future__ import annotations

import pytest
from torch import nn

import quantlora
from quantlora import LoraConfig, LoraLayer


class Packed(nn.Module):
    """A packed layer that no plugin knows."""

    in_features, out_features = 8, 8


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(8, 16), nn.Linear(16, 8)


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([Block(), Block()])
        self.head = nn.Linear(8, 50)

    def get_output_embeddings(self) -> nn.Module:
        return self.head


@pytest.fixture
def model() -> Model:
    return Model()


def reasons(found: quantlora.Explanation) -> dict[str, str]:
    return {row.path: row.reason for row in found.rows if row.reason}


def test_the_plan_is_what_wrap_does(model):
    fields = {"r": 4, "lora_alpha": 6, "rank_pattern": {"1.up": 2}, "target_modules": ["up"]}
    planned = {
        row.path: (row.r, row.lora_alpha) for row in quantlora.explain(model, **fields).wrapped
    }
    quantlora.wrap(model, **fields)
    done = {
        path: (layer.r["default"], layer.lora_alpha["default"])
        for path, layer in quantlora.lora_layers(model)
    }
    assert planned == done == {"layers.0.up": (4, 6), "layers.1.up": (2, 6)}


def test_nothing_is_changed(model):
    before = {name: (id(module), module.training) for name, module in model.named_modules()}
    flags = [parameter.requires_grad for parameter in model.parameters()]
    quantlora.explain(model, r=2)
    assert before == {name: (id(m), m.training) for name, m in model.named_modules()}
    assert flags == [parameter.requires_grad for parameter in model.parameters()]
    assert not any(isinstance(module, LoraLayer) for module in model.modules())


@pytest.mark.parametrize(
    ("fields", "path", "reason"),
    [
        ({}, "head", 'the output layer: "all-linear" leaves it out'),
        ({"target_modules": ["up"]}, "layers.0.down", "not in target_modules"),
        ({"exclude_modules": ["down"]}, "layers.1.down", "left out by exclude_modules"),
        ({"modules_to_save": ["down"]}, "layers.0.down", "in modules_to_save: trained in full"),
        (
            {"target_modules": ["up"], "layers_to_transform": [1], "layers_pattern": "layers"},
            "layers.0.up",
            "not in layers_to_transform",
        ),
    ],
)
def test_a_layer_that_is_left_out_has_its_reason(model, fields, path, reason):
    found = quantlora.explain(model, r=2, **fields)
    assert reasons(found)[path] == reason
    assert found.ok


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        ({"r": 0}, "r must be"),
        ({"rr": 2}, "unknown LoraConfig field 'rr'"),
        ({"backend": "nothing"}, "unknown backend 'nothing'"),
        ({"init_lora_weights": "nothing"}, "unknown initializer 'nothing'"),
        ({"target_modules": ["upp"]}, "Near names: "),
        ({"rank_pattern": {"nowhere": 3}}, "matches none of the targeted layers"),
        ({"adapter_name": "a.b"}, "it becomes a folder's name"),
        ({"config": LoraConfig(), "r": 2}, "give either a config or its fields"),
    ],
)
def test_a_wrong_call_is_shown_not_raised(model, arguments, problem):
    found = quantlora.explain(model, **arguments)
    assert not found.ok
    assert problem in found.problems[0]
    assert problem in str(found)


def test_every_problem_is_what_wrap_raises(model):
    found = quantlora.explain(model, r=2, target_modules=["upp"])
    with pytest.raises(quantlora.TargetError) as caught:
        quantlora.wrap(model, r=2, target_modules=["upp"])
    assert found.problems == (str(caught.value),)


def test_a_layer_nobody_knows_is_a_failing_row(model):
    model.layers[0].up = Packed()
    found = quantlora.explain(model, r=2)
    (row,) = [row for row in found.rows if row.fails]
    assert (row.path, row.layer, row.format) == ("layers.0.up", "Packed", "unknown")
    assert "no quantizer takes this layer" in row.reason


def test_a_rank_too_large_for_one_layer_is_a_failing_row(model):
    found = quantlora.explain(model, r=9, init_lora_weights="pissa")
    assert {row.path for row in found.rows if row.fails} == {
        f"layers.{i}.{name}" for i in range(2) for name in ("up", "down")
    }


def test_quantizing_first_is_shown_with_an_arrow(model):
    found = quantlora.explain(model, r=2, backend="normalfloat")
    assert all(row.format.endswith("-> normalfloat") for row in found.wrapped)
    assert len(found.wrapped) == 4


def test_a_wrapped_model_shows_its_base_layers(model):
    quantlora.wrap(model, r=2)
    rows = {row.path: row for row in quantlora.explain(model, r=3, adapter_name="second").rows}
    assert rows["layers.0.up"].layer == "Linear"
    assert rows["layers.0.up"].r == 3
    assert "exists already" in quantlora.explain(model, r=3).rows[0].reason


def test_the_table_has_a_line_for_each_layer_and_a_total(model):
    lines = str(quantlora.explain(model, r=2)).splitlines()
    assert lines[0].split()[:4] == ["path", "layer", "shape", "format"]
    assert lines[1].split()[:5] == ["layers.0.up", "Linear", "16", "x", "8"]
    assert lines[-1] == "4 of 5 linear layers get an adapter."


def test_what_wrap_would_warn_of_is_said(model):
    found = quantlora.explain(model, r=1000, target_modules=["up"])
    assert found.ok
    assert "wrap would warn: " in str(found)
    with pytest.warns(quantlora.AdapterWarning) as said:
        quantlora.wrap(model, r=1000, target_modules=["up"])
    assert found.warnings == (str(said[0].message),)
