"""The prompt: all its tokens at once, without gradients."""

from __future__ import annotations

from tests.benchmarks import arms
from tests.benchmarks.arms import Size
from tests.benchmarks.result import Result
from tests.benchmarks.suites import decode
from tests.benchmarks.timing import interleaved


def run(size: Size, device: str) -> Result:
    """Arms as in `decode`, a quarter of a step's tokens."""
    result = Result("Read a prompt", "ms", "base")
    length = max(8, size.tokens // 4)
    for form in arms.FORMATS:
        models = decode.models_of(form, size, device, layers=1)
        errors = decode.errors_of(models, device)
        models["dense"] = arms.llama(size, device, layers=1)
        ids = arms.tokens(1, length, device)
        calls = {name: decode.call_of(model, ids) for name, model in models.items()}
        result.add(f"{form}, {length} tokens", interleaved(calls, "base", size.rounds), errors)
    return result
