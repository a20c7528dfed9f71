"""What became of PEFT's tests: passed, or which class of reason they did not."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

PASSED, REFUSED, LACKING, ABSENT = "passed", "refused by design", "lacking", "not run here"

#: What an error says, the class of its reason, and the reason; the first that matches counts.
REASONS: list[tuple[str, str, str]] = [
    (r"offline|LocalEntryNotFound|huggingface\.co|couldn't connect", ABSENT, "a model of the hub"),
    (r"adapter_model\.bin|pickle", REFUSED, "pickle is neither written nor read"),
    (r"uploads nothing", REFUSED, "quantlora uploads nothing"),
    (r"velora_config", LACKING, "VeLoRA"),
    (r"use_bdlora", LACKING, "BD-LoRA"),
    (r"kasa_config", LACKING, "KaSA"),
    (r"monteclora", LACKING, "MonteCLoRA"),
    (r"arrow_config|arrow", LACKING, "Arrow"),
    (r"corda|CorDA", LACKING, "CorDA"),
    (r"lora_ga", LACKING, "LoRA-GA"),
    (r"eva_config|'eva'", LACKING, "EVA"),
    (r"alora_invocation", LACKING, "activated LoRA"),
    (r"initializer 'mica'", LACKING, "MiCA"),
    (r"layer_replication", LACKING, "layer replication"),
    (r"trainable_token_indices", LACKING, "trainable_token_indices"),
    (r"ensure_weight_tying", LACKING, "ensure_weight_tying"),
    (r"variant 'dora' cannot be put on", LACKING, "DoRA on such a layer"),
    (r"DoRA needs the norm of W", LACKING, "DoRA on a grouped convolution"),
    (r"cannot be disabled; call quantlora.unmerge", REFUSED, "disabling what is merged"),
    (r"has no attribute '(get_delta|merged_ad|disable_ad|set_ad)", LACKING, "PEFT's layer methods"),
    (r"MultiheadAttention", LACKING, "nn.MultiheadAttention"),
    (r"README\.md", LACKING, "a model card beside the adapter"),
    (r"\"meta\" in|is_meta", LACKING, "adapters made on the meta device (low_cpu_mem_usage)"),
    (r"Regex pattern did not match", LACKING, "refused in other words than PEFT's"),
    (r"DID NOT WARN", LACKING, "a warning of PEFT's"),
    (r"unknown initializer|init_lora_weights", LACKING, "an initializer of PEFT's"),
    (r"learnable_bias", LACKING, "the base's biases through set_peft_model_state_dict"),
    (
        r"test_multiple_active_\w*adapters_merge|plain_lora_and_dora_adapters_merge",
        LACKING,
        "merging what is active in its layer alone",
    ),
]


def read_outcomes(file: Path) -> list[dict[str, Any]]:
    """One row a test: a failure in its setup or teardown counts for the test."""
    rows: dict[str, dict[str, Any]] = {}
    for line in file.read_text().splitlines():
        row = json.loads(line)
        if rows.get(row["test"], {}).get("outcome") != "failed":
            rows[row["test"]] = row
    return list(rows.values())


def sorted_out(row: dict[str, Any]) -> tuple[str, str]:
    """The class of a row, and its reason."""
    if row["outcome"] == "passed":
        return PASSED, ""
    if row["outcome"] == "skipped":
        return ABSENT, "PEFT skips it here"
    said = f"{row['kind']}: {row['text'] or row['line']}"
    for form, category, reason in REASONS:
        if re.search(form, said) or re.search(form, row["test"].partition("[")[0]):
            return category, reason
    return LACKING, f"other: {said[:90]}"


def counts(rows: Iterable[dict[str, Any]]) -> Counter[tuple[str, str]]:
    return Counter(sorted_out(row) for row in rows)
