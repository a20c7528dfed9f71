"""docs/from-data-to-server.md: every command of the way, with what is printed."""

from __future__ import annotations

import re
import runpy
from collections.abc import Iterator
from pathlib import Path

from tests.terminal_record.steps import STEPS, Step
from tests.tools.typed_commands import inside, typed

PAGE = Path(__file__).parents[2] / "docs" / "from-data-to-server.md"
START = Path(__file__).parent / "start.py"
HEAD = """# From data to a server

What is typed, and what is printed, on the way from an empty folder to a model for a server. The
model is a tiny one, so that all of it takes a minute on a CPU. The page is written by
`python -m tests.terminal_record --write`, and
[a test](../tests/terminal_record/test_terminal_record.py) runs everything again and compares the
whole text. An ellipsis, …, stands where a machine has figures of its own: times, speeds, what an
untrained model says, and decimals that depend on the order of sums.

It needs `pip install "quantlora[gguf,normalfloat,train]"`. With a model and data of your own leave
this out; here, in an empty folder, they are written by

"""
FOOT = """## Start a server

What to type, from the folder that holds all of this:

```bash
# llama.cpp: the model, or the adapter on a GGUF file of its base
llama-server -m served/model-f16.gguf
llama-server -m BASE.gguf --lora my-adapter-gguf/adapter.gguf \\
    --jinja --chat-template-file my-adapter/chat_template.jinja
# Ollama
ollama create my-model -f served/Modelfile && ollama run my-model
# vLLM: the merged model, or the adapter on its base, which has no chat template of its own
vllm serve ./merged
vllm serve ./my-model --enable-lora --lora-modules my-adapter=./my-adapter \\
    --chat-template ./my-adapter/chat_template.jinja
```

No server's answer is in this record. llama-cpp-python answers in the slow test
[test_llama_cpp.py](../plugins/gguf/tests/test_llama_cpp.py), which compares it with quantlora
on an exported adapter and an exported model of Gemma 3 270M, and is skipped where llama-cpp-python
is not installed. Ollama and vLLM were not run.

[After training](after-training.md) has the options of these commands,
[Serving](serving.md) what servers take, [Fine-tune](finetune.md) the training.
"""
#: What differs by machine, and what is written in its place.
_VOLATILE = (
    (r"loss (\d+)\.\d+, \d+ tokens/s", r"loss \1.…, … tokens/s"),
    (r"-[\d.]+ %\), \d+ s of training at \d+ tokens", "-… %), … s of training at … tokens"),
    (r"(perplexity \w+ training: \d+)\.\d+", r"\1.…"),
    (r"Perplexity (\d+)\.\d+ -> (\d+)\.\d+", r"Perplexity \1.… -> \2.…"),
    (r"within \S+ \(relative\)", "within … (relative)"),
    # of an untrained model all continuations are about as likely
    (r"(before training: .*\n(?:    .*\n)*?    .*assistant\n)(?:    .*\n)*", r"\1    …\n"),
    (r"\n{3,}", "\n\n"),
)
#: The same in the columns of tables, which keep their widths.
_COLUMNS = (
    r"(?m)^(│ (?:activations|total) .*│)( +[\d.]+ \w+)(?= │$)",  # measured
    r"(?m)( )(\d+\.\d\d)(?= │)",  # perplexities
)


def steady(text: str) -> str:
    """``text`` without what differs from one machine to the next."""
    for pattern, instead in _VOLATILE:
        text = re.sub(pattern, instead, text)
    for column in _COLUMNS:
        text = re.sub(column, lambda found: found[1] + _shortened(found[2]), text)
    return text


def _shortened(figure: str) -> str:
    shown = "…" if figure.endswith("B") else f"{figure.partition('.')[0]}.…"
    return shown.rjust(len(figure))


def sections(folder: Path) -> Iterator[str]:
    """The parts of the page in order; ``folder`` is empty and becomes the working directory."""
    with inside(folder):
        runpy.run_path(str(START))
    yield f"{HEAD}```python\n{START.read_text('utf-8')}```\n"
    for step in STEPS:
        yield _section(step, folder)
    yield FOOT


def _section(step: Step, folder: Path) -> str:
    return f"## {step.title}\n\n{step.text}\n\n{steady(typed(step.line, folder, step.answers))}"
