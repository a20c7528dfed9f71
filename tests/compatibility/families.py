"""The architectures of the installed Transformers, each with the class that is tried."""

from __future__ import annotations

from typing import Any

#: Transformers' tables of classes by task, the likeliest to be adapted first.
TASKS = (
    "SEQ_TO_SEQ_CAUSAL_LM",
    "SPEECH_SEQ_2_SEQ",
    "IMAGE_TEXT_TO_TEXT",
    "CAUSAL_LM",
    "MASKED_LM",
    "CTC",
    "AUDIO_CLASSIFICATION",
    "IMAGE_CLASSIFICATION",
    "ZERO_SHOT_IMAGE_CLASSIFICATION",
    "VISUAL_QUESTION_ANSWERING",
    "VIDEO_CLASSIFICATION",
    "SEMANTIC_SEGMENTATION",
    "OBJECT_DETECTION",
    "DEPTH_ESTIMATION",
    "QUESTION_ANSWERING",
    "SEQUENCE_CLASSIFICATION",
    "TOKEN_CLASSIFICATION",
    "TEXT_ENCODING",
)
#: The dozen of the fast tests: decoders, mixtures, encoders, both, sight, sound.
SMOKE = (
    "llama", "gpt2", "mixtral", "mamba2", "bert", "t5", "bart", "whisper", "wavlm", "pvt_v2",
    "altclip", "qwen2_vl",
)  # fmt: skip


def families() -> dict[str, str]:
    """The class's name by ``model_type``, in alphabetical order."""
    from transformers.models.auto import modeling_auto

    found: dict[str, str] = {}
    for task in TASKS:
        table = getattr(modeling_auto, f"MODEL_FOR_{task}_MAPPING_NAMES", {})
        for model_type, name in table.items():
            found.setdefault(model_type, name if isinstance(name, str) else name[0])
    return dict(sorted(found.items()))


def classes(model_type: str) -> tuple[type, type]:
    """The config's and the model's class of one family."""
    import transformers

    model: Any = getattr(transformers, families()[model_type])
    return model.config_class, model
