"""The model card beside the adapter, as the Hugging Face hub reads it."""

from __future__ import annotations

import json
import re
from pathlib import Path

from huggingface_hub import ModelCard, ModelCardData

from quantlora_finetune.model import demo_model
from quantlora_finetune.model.base_model import BaseModel
from quantlora_finetune.reporting.report import Report, short_name

#: Beside this file, with the card's text.
_TEMPLATE = Path(__file__).with_name("card.md")
_IMPORT = "from quantlora_finetune.model.demo_model import demo_model\n"


def model_card(report: Report) -> ModelCard:
    """The card for the run that ``report`` describes."""
    base, formats = report.base, report.model.formats
    card: ModelCard = ModelCard.from_template(
        _metadata(base, list(formats)),
        template_str=_TEMPLATE.read_text("utf-8"),
        base_name=short_name(base.name),
        data_name=short_name(report.data["name"]),
        location="demo_model()" if base.is_demo else json.dumps(base.model_id_or_path),
        imports=_IMPORT if base.is_demo else "",
        backend=next(iter(formats)) if len(formats) == 1 else "auto",
        terms=demo_model.TERMS if base.is_demo else "",
        fenced=_fenced,
        rows="packed rows" if report.options.packing else "examples",
        **vars(report),
    )
    return card


def _metadata(base: BaseModel, formats: list[str]) -> ModelCardData:
    on_hub = not Path(base.name).is_dir()
    return ModelCardData(
        base_model=base.name if on_hub else None,
        license="gemma" if base.is_demo else None,
        library_name="peft",
        pipeline_tag="text-generation",
        tags=[
            "lora",
            "quantlora",
            *formats,
            *([f"base_model:adapter:{base.name}"] if on_hub else []),  # as saving the adapter adds
        ],
    )


def _fenced(text: str) -> str:
    """As a fenced block, whatever the model wrote."""
    fence = "`" * max(3, *(len(run) + 1 for run in re.findall("`+", text)), 0)
    return f"\n\n{fence}text\n{text}\n{fence}"
