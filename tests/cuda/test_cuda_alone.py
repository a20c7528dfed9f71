"""What only a GPU has: streams, graphs, synchronization that is an error, NCCL."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import nn

import quantlora
from tests.cuda.models import BACKENDS, LIMITS, formula, gradients, inputs, off, wrapped

pytestmark = [
    pytest.mark.cuda,
    pytest.mark.filterwarnings("ignore:backend='gptq' without calibration"),
]


@pytest.mark.parametrize("backend", BACKENDS)
def test_another_stream_gives_the_same(backend: str) -> None:
    model, x = wrapped(backend, "cuda"), inputs("cuda", torch.float32)
    wanted = gradients(model, formula(model, x).square().sum())
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        found = gradients(model, model(x).square().sum())
    torch.cuda.current_stream().wait_stream(stream)
    assert all(off(found[name], wanted[name].double()) < 1e-4 for name in wanted)


@pytest.mark.parametrize("variant", [{}, {"use_dora": True}], ids=["lora", "dora"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_no_step_waits_for_the_gpu(backend: str, variant: dict[str, Any]) -> None:
    """torch raises where an operation synchronizes; the first step may."""
    model, x = wrapped(backend, "cuda", torch.bfloat16, **variant), inputs("cuda", torch.bfloat16)
    model(x).sum().backward()
    torch.cuda.set_sync_debug_mode("error")
    try:
        model(x).sum().backward()
        with torch.no_grad():
            model.eval()(x)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("backend", BACKENDS)
def test_decoding_is_captured_in_a_graph(backend: str) -> None:
    model, x = wrapped(backend, "cuda", torch.bfloat16).eval(), inputs("cuda", torch.bfloat16, 1)
    graph = torch.cuda.CUDAGraph()
    with torch.no_grad():
        stream = torch.cuda.Stream()
        with torch.cuda.stream(stream):
            for _ in range(3):
                model(x)
        torch.cuda.current_stream().wait_stream(stream)
        with torch.cuda.graph(graph):
            y = model(x)
        x.copy_(torch.randn_like(x))
        graph.replay()
        assert off(y, formula(model, x)) < LIMITS[torch.bfloat16]


@pytest.fixture
def nccl() -> Iterator[None]:
    """A process group of one."""
    store = torch.distributed.HashStore()
    torch.distributed.init_process_group("nccl", store=store, rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


@pytest.mark.parametrize("backend", ["float", "normalfloat", "bitsandbytes_4bit", "gptq"])
def test_fsdp2_gives_the_same_gradients(backend: str, nccl: None) -> None:
    from torch.distributed.fsdp import fully_shard

    model, x = wrapped(backend, "cuda"), inputs("cuda", torch.float32)
    wanted = gradients(model, formula(model, x).square().sum())
    sharded: nn.Module = fully_shard(model)
    found = gradients(sharded, sharded(x).square().sum())
    for name, gradient in wanted.items():
        own: Any = found[name]
        assert off(own.full_tensor(), gradient.double()) < 1e-4, name
    quantlora.set_adapter(model, "default")
