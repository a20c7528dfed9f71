"""Forward and backward never wait for an accelerator: no ``.item()``, no copy to the host."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

import quantlora
from tests.cuda.host_reads import HostReads, moved

LIBRARIES = {"bitsandbytes_4bit": "bitsandbytes", "bitsandbytes_8bit": "bitsandbytes",
             "gptq": "gptqmodel", "awq": "gptqmodel", "hqq": "hqq", "torchao": "torchao",
             "compressed_tensors": "compressed_tensors", "gguf": "gguf"}  # fmt: skip
BACKENDS = ("float", "normalfloat", "fp8", *LIBRARIES)
VARIANTS: dict[str, dict[str, Any]] = {
    "lora": {},
    "dropout": {"lora_dropout": 0.1},
    "bias": {"lora_bias": True},
    "dora": {"use_dora": True},
}
pytestmark = pytest.mark.filterwarnings("ignore:backend='gptq' without calibration")


def wrapped(backend: str, **fields: Any) -> nn.Module:
    if backend in LIBRARIES:
        pytest.importorskip(LIBRARIES[backend])
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(128, 64))
    given = {} if backend == "float" else {"backend": backend}
    for name in ("default", "second"):
        fields = {"r": 4, "target_modules": ["0"], "init_lora_weights": False} | fields
        quantlora.wrap(model, adapter_name=name, **fields, **given)
        given = {}
    return model


def on_meta(model: nn.Module) -> nn.Module:
    return moved(model, lambda tensor: torch.empty_like(tensor, device="meta"))


def fake_cuda(tensor: Tensor) -> Tensor:
    new = torch.empty(tensor.shape, dtype=tensor.dtype, device="cuda")
    return nn.Parameter(new, False) if isinstance(tensor, nn.Parameter) else new


def x(dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.empty(3, 5, 128, device="meta", dtype=dtype, requires_grad=True)


def test_what_asks_for_a_value_is_found() -> None:
    tensor = torch.empty(3, device="meta")
    for ask in (Tensor.cpu, lambda t: t.sum().item(), lambda t: bool(t.any()), Tensor.nonzero):
        with pytest.raises((NotImplementedError, RuntimeError)), HostReads():
            ask(tensor)
    with HostReads() as reads:
        torch.zeros(2).to("meta")
        torch.zeros(2).sum().item()
    assert reads.found == {"copies": 1, "_local_scalar_dense": 1}


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("backend", BACKENDS)
def test_a_training_step_asks_for_no_value(backend: str, variant: str) -> None:
    model = on_meta(wrapped(backend, **VARIANTS[variant])).train()
    with HostReads() as reads:
        model(x()).sum().backward()
    assert not reads.found
    assert model[0].lora_A["second"].weight.grad.is_meta


def test_the_groups_of_a_gptq_layer_are_compared_once(monkeypatch: pytest.MonkeyPatch) -> None:
    model = wrapped("gptq").train()
    from quantlora_gptq import layout

    given = torch.randn(3, 128, requires_grad=True)
    model(given).sum().backward()
    monkeypatch.setattr(layout, "_compare", lambda *groups: pytest.fail("compared again"))
    model(given).sum().backward()


@pytest.mark.parametrize("variant", ["lora", "dora"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_a_token_asks_for_no_value(backend: str, variant: str) -> None:
    model = on_meta(wrapped(backend, **VARIANTS[variant])).eval()
    with torch.no_grad(), HostReads() as reads:
        for _ in range(2):  # the second finds what the first has kept
            model(x(torch.bfloat16))
    assert not reads.found


@pytest.mark.parametrize(
    ("names", "copies"),
    [(("default", "second", "second"), 0), (("second", "default", "second"), 1)],
    ids=["in order", "mixed up"],
)
def test_a_mixed_batch_asks_for_no_value(names: tuple[str, ...], copies: int) -> None:
    """The order of the samples goes to the device once for a layer, and nobody waits for it."""
    model = on_meta(wrapped("normalfloat"))
    with quantlora.mixed_batch(model, names), HostReads() as reads:
        model(x()).sum().backward()
    assert reads.counts["copies"] == copies
    assert not set(reads.found) - {"copies"}


def test_fake_cuda_tensors_stay_on_their_device() -> None:
    """Without autograd and packed weights: a build of torch for CPUs lacks too much of CUDA."""
    model = wrapped("float").eval().requires_grad_(False)
    with FakeTensorMode(allow_non_fake_inputs=True), torch.no_grad(), HostReads() as reads:
        for part in model.modules():
            for table in (part._parameters, part._buffers):
                table.update({n: fake_cuda(t) for n, t in table.items() if t is not None})
        y = model(torch.empty(3, 128, device="cuda"))
    assert y.device.type == "cuda"
    assert not reads.found
