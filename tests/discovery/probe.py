"""Run in a process of its own with plugins on its path; prints what they did as JSON."""

from __future__ import annotations

import json
import warnings

import torch
from torch import nn
from typer.testing import CliRunner

import quantlora
from quantlora.cli import app
from quantlora.env.report import make_report


class Packed(nn.Module):
    """A layer that no plugin knows."""

    in_features, out_features = 4, 4


def plain_lora_trains() -> bool:
    model = quantlora.wrap(nn.Sequential(nn.Linear(8, 8)), r=2)
    model(torch.ones(1, 8)).sum().backward()
    return model[0].lora_B["default"].weight.grad is not None


def good_plugin_works() -> bool:
    model = quantlora.wrap(
        nn.Sequential(nn.Linear(8, 8)), backend="halved", init_lora_weights="ones", r=2
    )
    return model[0].quantizer.name == "halved" and bool(model[0].lora_B["default"].weight.all())


def error(call, *args, **kwargs) -> str:
    try:
        call(*args, **kwargs)
    except quantlora.QuantloraError as found:
        return str(found)
    return ""


def main() -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        found = {
            "plain": plain_lora_trains(),
            "good": good_plugin_works(),
            "unknown_backend": error(quantlora.registry().quantizer, "gone"),
            "unknown_layer": error(quantlora.wrap, nn.Sequential(Packed()), r=2),
            "plugins": json.loads(CliRunner().invoke(app, ["plugins", "--json"]).stdout)["plugins"],
            "report": make_report().as_json(),
        }
    found["warnings"] = [
        [str(w.message), w.filename] for w in caught if w.category is quantlora.PluginWarning
    ]
    print(json.dumps(found))


if __name__ == "__main__":
    main()
