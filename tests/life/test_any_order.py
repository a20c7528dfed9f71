"""In any order of operations, the output depends only on the set of active adapters."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from typing import Any

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import HealthCheck, Phase, settings
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from torch import Tensor, nn

import quantlora
from quantlora.adapters.state import adapter_state
from quantlora.errors import QuantloraError

NAMES = st.sampled_from(["a", "b", "c"])
SUBSETS = st.lists(NAMES, max_size=3, unique=True)
#: Error allowed, relative to the largest value, in the dtype of the model.
TOLERANCES = {torch.float32: 1e-5, torch.float64: 1e-11, torch.bfloat16: 0.1}

Update = dict[str, tuple[Tensor, Tensor]]


class Life(RuleBasedStateMachine):
    """A model of two layers beside a book of what each adapter adds to their weights."""

    backend = "auto"
    dtype = torch.float32

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        layers = (nn.Linear(12, 16), nn.Tanh(), nn.Linear(16, 8))
        self.model: Any = nn.Sequential(*layers).to(self.dtype)
        self.x = torch.randn(3, 12, dtype=self.dtype)
        self.book: dict[str, Update] = {}
        self.base: Update = {}
        self.enabled = True
        self.add_anyway("a", 2, ["0", "2"], "lora", 1)
        for path, layer in quantlora.lora_layers(self.model):
            self.base[path] = (layer.dequantize().double(), layer.base_bias.double())

    # -- operations; one that is refused must leave everything as it was

    def tried(self, operation: Callable[[], Any]) -> bool:
        try:
            operation()
        except QuantloraError:
            return False
        return True

    def add_anyway(self, name: str, r: int, places: list[str], variant: str, seed: int) -> None:
        torch.manual_seed(seed)
        fields: dict[str, Any] = {"target_modules": places, "r": r, "lora_alpha": 3}
        fields |= {"use_dora": variant == "dora", "use_rslora": variant == "rslora"}
        fields |= {"lora_bias": variant == "bias", "init_lora_weights": False}
        fields |= {"bias": "lora_only" if variant == "own_bias" else "none"}
        quantlora.wrap(self.model, backend=self.backend, adapter_name=name, **fields)
        self.note(name)
        self.active, self.enabled = {name}, True

    def note(self, name: str) -> None:
        """Write down the adapter's update, after some training of what starts at the base."""
        self.book[name] = {}
        for path, layer in quantlora.lora_layers(self.model):
            if name in layer.adapters:
                for key, tensor in layer.adapter_tensors(name).items():
                    if "magnitude" in key or "bias" in key:
                        tensor.data += 0.1 * torch.randn_like(tensor)
                weight = layer.dequantize()
                bias = layer.delta_bias(name, weight)
                zero = torch.zeros(layer.out_features, dtype=torch.float64)
                update = layer.delta_weight(name, weight).detach().double()
                self.book[name][path] = (update, zero if bias is None else bias.detach().double())
        self.note_biases(name)

    def note_biases(self, name: str) -> None:
        """Those of the model itself, that the adapter has trained."""
        for one in adapter_state(self.model).biases.get(name, ()):
            one.parameter.data += 0.1 * torch.randn_like(one.parameter)
            path = one.names[0].removesuffix(".base_layer.bias")
            update, bias = self.book[name][path]
            change = one.parameter.detach().double() - one.plain.detach().double()
            self.book[name][path] = (update, bias + change)

    @rule(
        name=NAMES,
        r=st.integers(1, 8),
        places=st.sampled_from([["0"], ["2"], ["0", "2"]]),
        variant=st.sampled_from(["lora", "rslora", "dora", "bias", "own_bias"]),
        seed=st.integers(0, 99),
    )
    def add(self, name: str, r: int, places: list[str], variant: str, seed: int) -> None:
        self.tried(lambda: self.add_anyway(name, r, places, variant, seed))

    @rule(names=SUBSETS)
    def set(self, names: list[str]) -> None:
        if self.tried(lambda: quantlora.set_adapter(self.model, names)):
            self.active = {*names}

    @rule(names=SUBSETS)
    def merge(self, names: list[str]) -> None:
        """Into float, so that nothing is lost."""
        if self.tried(lambda: quantlora.merge(self.model, names, mode="dequantize")):
            self.active |= {*names}

    @rule()
    def unmerge(self) -> None:
        quantlora.unmerge(self.model)

    @rule(name=NAMES)
    def delete(self, name: str) -> None:
        if self.tried(lambda: quantlora.delete_adapter(self.model, name)):
            del self.book[name]
            was, self.active = self.active, self.active - {name}
            if was and not self.active:  # the oldest of the others answers, with a warning
                self.active = {*list(self.book)[:1]}

    @rule(old=NAMES, new=NAMES)
    def rename(self, old: str, new: str) -> None:
        if self.tried(lambda: quantlora.rename_adapter(self.model, old, new)):
            self.book = {new if name == old else name: one for name, one in self.book.items()}
            self.active = {new if name == old else name for name in self.active}

    @rule(old=NAMES, new=NAMES)
    def save_and_load(self, old: str, new: str) -> None:
        with tempfile.TemporaryDirectory() as folder:
            if self.tried(lambda: quantlora.save_adapter(self.model, folder, old)):
                place = folder if old == "default" else f"{folder}/{old}"
                if self.tried(lambda: quantlora.load_adapter(self.model, place, new)):
                    self.book[new], self.active, self.enabled = self.book[old], {new}, True

    @rule(enabled=st.booleans())
    def enable(self, enabled: bool) -> None:
        change = quantlora.enable_adapters if enabled else quantlora.disable_adapters
        if self.tried(lambda: change(self.model)):
            self.enabled = enabled

    @precondition(lambda self: len(self.book) > 1)
    @rule(weights=st.lists(st.floats(-2, 2), min_size=2, max_size=2))
    def combine(self, weights: list[float]) -> None:
        """The exact sum of the first two, in place of the last name."""
        parts = sorted(self.book)[:2]
        if self.tried(
            lambda: quantlora.add_weighted_adapter(self.model, parts, weights, "c", svd_rank=16)
        ):
            self.note("c")
            self.active, self.enabled = {"c"}, True

    # -- what must hold

    @invariant()
    def the_output_is_that_of_the_active_adapters(self) -> None:
        if not self.base:
            return
        y = self.x.double()
        for path in ("0", "2"):
            weight, bias = self.base[path]
            for name in self.active if self.enabled else ():
                delta, delta_bias = self.book[name].get(path, (0, 0))
                weight, bias = weight + delta, bias + delta_bias
            y = y @ weight.t() + bias
            y = y.tanh() if path == "0" else y
        error = (self.model(self.x).double() - y).abs().max() / y.abs().max()
        assert error <= TOLERANCES[self.dtype]
        assert {*quantlora.active_adapters(self.model)} == self.active


@pytest.mark.parametrize(
    "backend",
    [
        "auto",
        *(pytest.param(b, marks=pytest.mark.slow) for b in ("bitsandbytes_4bit", "normalfloat")),
    ],
)
def test_the_output_depends_only_on_the_active_adapters(backend: str) -> None:
    run(20 if backend == "auto" else 8, backend=backend)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_the_same_in_other_dtypes(dtype: torch.dtype) -> None:
    run(10, dtype=dtype)


def run(examples: int, **attributes: Any) -> None:
    machine = type("Life", (Life,), attributes)
    machine.TestCase.settings = settings(
        max_examples=examples,
        stateful_step_count=20,
        deadline=None,
        suppress_health_check=[HealthCheck.too_slow],
        phases=[Phase.explicit, Phase.reuse, Phase.generate],  # shrinking would take minutes
    )
    machine.TestCase("runTest").runTest()
