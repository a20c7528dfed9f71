"""``README.md`` beside the adapter: a model card as the Hugging Face hub reads it."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from quantlora_finetune.model import demo_model
from quantlora_finetune.reporting.report import Report, short_name

_CARD = """\
---
{header}
---

# LoRA adapter for {base}

{base} in {formats}, fine-tuned with [LoRA](https://arxiv.org/abs/2106.09685) of rank {rank} on \
{data}, by quantlora {quantlora}.

| held-out perplexity | before | after |
|---|---|---|
| {measured_tokens} tokens that were not trained on | {before:.2f} | {after:.2f} |

![Loss by step](loss.png)

## Use

```python
import quantlora
{imports}from transformers import AutoModelForCausalLM, AutoTokenizer

base = {place}
tokenizer = AutoTokenizer.from_pretrained(base)
model = AutoModelForCausalLM.from_pretrained(base, dtype="{dtype}")
quantlora.load_adapter(model, "path/to/this/folder", backend="{backend}")
```

The files are PEFT's, so `PeftModel.from_pretrained(model, "path/to/this/folder")` works too. The \
adapter was trained over quantized weights: use it over the same format for the figures above.

## Sample

Prompt: {prompt}

Before: {sample_before}

After: {sample_after}

## Training

{steps} steps of {batch} x {length} tokens, learning rate {lr:g}, {seconds:.0f} s on \
{device} at {speed:.0f} tokens/s; {parameters:,} trained parameters. `report.json` has all options \
and the loss of each step.
{terms}"""

_IMPORT = "from quantlora_finetune.model.demo_model import demo_model\n"

_TERMS = f"""
## Terms

Gemma is provided under and subject to the Gemma Terms of Use found at {demo_model.TERMS}; they \
hold for this adapter too.
"""

#: The last line; its digest is that of the text before it.
_SEAL = "\n<!-- by quantlora finetune, {digest}: once edited, this card is not written over -->\n"

CARD, NEW_CARD = "README.md", "README.new.md"


def write_card(folder: Path, report: Report) -> None:
    """Write the card for the run that ``report`` describes; beside one that somebody has edited."""
    text = card_text(report)
    file = folder / (NEW_CARD if is_edited(folder / CARD) else CARD)
    file.write_text(text + _seal(text), "utf-8")


def is_edited(file: Path) -> bool:
    """Whether ``file`` is there with anything but what `write_card` wrote."""
    try:
        text = file.read_text("utf-8")
    except FileNotFoundError:
        return False
    except (OSError, ValueError):
        return True
    written = text.rpartition(_SEAL.partition("{")[0])[0]
    return text != written + _seal(written)


def _seal(text: str) -> str:
    return _SEAL.format(digest=hashlib.sha256(text.encode()).hexdigest()[:16])


def card_text(report: Report) -> str:
    """The card without its last line."""
    base, options, training, model = report.base, report.options, report.training, report.model
    return _CARD.format(
        header=_header(report),
        base=short_name(base.name),
        place="demo_model()" if base.is_demo else json.dumps(base.place),
        imports=_IMPORT if base.is_demo else "",
        formats=", ".join(model.formats),
        backend=next(iter(model.formats)) if len(model.formats) == 1 else "auto",
        dtype=model.compute_dtype,
        rank=options.rank,
        data=short_name(report.data["name"]),
        measured_tokens=report.data["measured_tokens"],
        before=report.before.perplexity,
        after=report.after.perplexity,
        prompt=_quoted(report.before.prompt),
        sample_before=_quoted(report.before.continuation),
        sample_after=_quoted(report.after.continuation),
        steps=options.steps,
        batch=options.batch_size * options.accumulate,
        length=options.length,
        lr=options.lr,
        seconds=training.seconds,
        device=model.device,
        speed=training.tokens_per_second,
        parameters=model.trained_parameters,
        quantlora=report.versions["quantlora"],
        terms=_TERMS if base.is_demo else "",
    )


def _header(report: Report) -> str:
    """YAML; JSON strings are YAML strings."""
    base = report.base
    on_hub = not Path(base.name).is_dir()
    lines = [f"base_model: {json.dumps(base.name)}"] if on_hub else []
    lines += ["license: gemma"] if base.is_demo else []
    lines += ["library_name: peft", "pipeline_tag: text-generation", "tags:"]
    tags = ["lora", "quantlora", *report.model.formats]
    tags += [f"base_model:adapter:{base.name}"] if on_hub else []  # as saving the adapter adds
    return "\n".join([*lines, *(f"- {tag}" for tag in tags)])


def _quoted(text: str) -> str:
    """As a fenced block, whatever the model wrote."""
    fence = "`" * max(3, 1 + max((len(run) for run in _runs(text)), default=0))
    return f"\n\n{fence}text\n{text}\n{fence}"


def _runs(text: str) -> list[str]:
    return "".join(c if c == "`" else " " for c in text).split()
