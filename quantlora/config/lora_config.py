"""`LoraConfig`: PEFT's field names and meanings, so a PEFT user's config works as it stands."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from quantlora.config.expressions import compiled, shortened
from quantlora.config.field_types import misfits
from quantlora.errors import ConfigError
from quantlora.suggestions import FIELDS_ELSEWHERE, unknown

_BIASES = ("none", "all", "lora_only")
#: No rank or size comes near it, and torch takes none beyond.
_TOO_LARGE = 2**31


def _variant(default: bool = False) -> Any:
    """A flag ``use_<name>`` that picks the layer variant ``<name>``."""
    return field(default=default, metadata={"variant": True})


@dataclass
class LoraConfig:
    """The settings of one adapter.

    Args:
        r: rank of the update.
        lora_alpha: the update is scaled by ``lora_alpha / r`` (``/ sqrt(r)`` with ``use_rslora``).
        lora_dropout: probability of dropping an element of the adapter's input.
        target_modules: names (a path equals one or ends in ``.name``), a regular expression for
            the whole path, or ``"all-linear"``.
        exclude_modules: the same forms; wins over ``target_modules``.
        init_lora_weights: True for LoRA's own (A Kaiming-uniform, B zero; Hu et al. 2021,
            arXiv:2106.09685), False for both random, or the name of an `Initializer`.
        rank_pattern, alpha_pattern: other ranks and alphas by a pattern for the end of the path.
        use_variant: the layer variant by its name, for one that has no flag of its own here.
        bias: ``"none"``, ``"all"`` or ``"lora_only"``: which of the model's biases are trained.
        lora_bias: give B a bias of its own.
        modules_to_save: modules trained in full and saved with the adapter.
        target_parameters: parameters that are no layer's weight, by the end of their names.
        target_experts: ``"all-linear"`` means the fused experts of mixtures too, where
            ``target_parameters`` names none.
        trainable_token_indices: tokens whose rows are trained in full: of the input embeddings, or
            by the names of modules. What has their weight too (a tied head) follows.
        ensure_weight_tying: what has the weight of adapted input embeddings has the adapter too.
        layers_to_transform, layers_pattern: only these indices of the layer list.
    """

    r: int = 8
    lora_alpha: float = 8
    lora_dropout: float = 0.0
    target_modules: list[str] | str | None = "all-linear"
    exclude_modules: list[str] | str | None = None
    init_lora_weights: bool | str = True
    rank_pattern: dict[str, int] = field(default_factory=dict)
    alpha_pattern: dict[str, float] = field(default_factory=dict)
    use_rslora: bool = False
    use_dora: bool = _variant()
    use_qalora: bool = _variant()
    use_variant: str | None = None
    qalora_group_size: int | None = None
    loftq_config: Any = None
    eva_config: Any = None
    bias: str = "none"
    lora_bias: bool = False
    fan_in_fan_out: bool = False
    modules_to_save: list[str] | None = None
    layers_to_transform: list[int] | int | None = None
    layers_pattern: list[str] | str | None = None
    target_parameters: list[str] | None = None
    target_experts: bool = True
    trainable_token_indices: list[int] | dict[str, list[int]] | None = None
    ensure_weight_tying: bool = False
    task_type: str | None = None
    peft_type: str = "LORA"
    base_model_name_or_path: str | None = None
    revision: str | None = None
    inference_mode: bool = False

    def __post_init__(self) -> None:
        for name in ("target_modules", "exclude_modules"):
            if isinstance(getattr(self, name), (set, tuple)):
                setattr(self, name, sorted(getattr(self, name)))
        _check_config(self)

    @property
    def variant(self) -> str:
        """The layer variant: that of the one ``use_<name>`` that is set, or ``lora``."""
        chosen = {flag: name for name, flag in _variant_flags().items() if getattr(self, flag)}
        if self.use_variant is not None:
            chosen["use_variant"] = self.use_variant
        if len(chosen) > 1:
            raise ConfigError(f"{' and '.join(chosen)} cannot be combined: choose one.")
        return next(iter(chosen.values()), "lora")

    @staticmethod
    def variant_fields(variant: str) -> dict[str, Any]:
        """The fields that choose the layer variant of that name; none for ``lora``.

        Its own flag where PEFT has one, for PEFT's files must say so, else ``use_variant``.
        """
        if variant == "lora":
            return {}
        flag = _variant_flags().get(variant)
        return {"use_variant": variant} if flag is None else {flag: True}

    def scaling(self, r: int, lora_alpha: float) -> float:
        """The factor of the update; with rsLoRA ``alpha / sqrt(r)`` (arXiv:2312.03732)."""
        return lora_alpha / (math.sqrt(r) if self.use_rslora else r)

    @classmethod
    def from_fields(cls, fields: Mapping[str, Any]) -> LoraConfig:
        """A config from keyword arguments; an unknown name is an error with near names."""
        names = [f.name for f in dataclasses.fields(cls)]
        for name in fields:
            if name not in names:
                raise ConfigError(unknown("LoraConfig field", name, names, FIELDS_ELSEWHERE))
        return cls(**fields)


def _variant_flags() -> dict[str, str]:
    """The flag of each variant that has one."""
    flags = [f.name for f in dataclasses.fields(LoraConfig) if f.metadata.get("variant")]
    return {flag.removeprefix("use_"): flag for flag in flags}


def _check_config(config: LoraConfig) -> None:
    """Raise `ConfigError` for the first thing that is wrong."""
    for name, wanted in misfits(type(config), vars(config)).items():
        raise ConfigError(f"{name} must be {wanted}, got {shortened(getattr(config, name))}.")
    _check_numbers(config)
    _check_patterns(config)
    if config.bias not in _BIASES:
        raise ConfigError(f"bias must be one of {', '.join(_BIASES)}, got {config.bias!r}.")
    if config.peft_type != "LORA":
        raise ConfigError(f"peft_type {config.peft_type!r} is not LoRA: quantlora reads LORA only.")
    if config.layers_pattern and config.layers_to_transform is None:
        raise ConfigError("layers_pattern needs layers_to_transform: which indices of the list?")
    if config.layers_to_transform is not None and isinstance(config.target_modules, str):
        raise ConfigError(
            "layers_to_transform needs target_modules as a list of names; with a regular "
            "expression, put the indices into it."
        )
    _ = config.variant  # two variants at once are refused here


def _check_numbers(config: LoraConfig) -> None:
    ranks = {"r": config.r, **_entries("rank_pattern", config.rank_pattern)}
    for name, r in ranks.items():
        if not 1 <= r < _TOO_LARGE:
            raise ConfigError(f"{name} must be a positive integer, got {shortened(r)}.")
    alphas = {"lora_alpha": config.lora_alpha, **_entries("alpha_pattern", config.alpha_pattern)}
    for name, alpha in alphas.items():
        if not _is_finite(alpha):
            raise ConfigError(f"{name} must be a finite number, got {shortened(alpha)}.")
    if not 0.0 <= config.lora_dropout < 1.0:
        raise ConfigError(f"lora_dropout must be in [0, 1), got {shortened(config.lora_dropout)}.")
    size = config.qalora_group_size
    if size is not None and not 0 <= size < _TOO_LARGE:
        raise ConfigError(f"qalora_group_size must not be negative, got {shortened(size)}.")


def _is_finite(number: float) -> bool:
    """Also of a whole number that no float can hold."""
    try:
        return math.isfinite(number)
    except OverflowError:
        return False


def _entries(name: str, pattern: dict[str, int] | dict[str, float]) -> dict[str, float]:
    return {f"{name}[{key!r}]": value for key, value in pattern.items()}


def _check_patterns(config: LoraConfig) -> None:
    """Every regular expression compiles; lists of targets are names, not expressions."""
    whole = {name: getattr(config, name) for name in ("target_modules", "exclude_modules")}
    given: dict[str, Iterable[str]] = {n: [v] for n, v in whole.items() if isinstance(v, str)}
    given |= {"rank_pattern": config.rank_pattern, "alpha_pattern": config.alpha_pattern}
    parts = config.layers_pattern or []
    given["layers_pattern"] = [parts] if isinstance(parts, str) else parts
    given["modules_to_save"] = config.modules_to_save or []
    for name, patterns in given.items():
        for pattern in patterns:
            try:
                compiled(pattern)
            except ConfigError as error:
                raise ConfigError(f"{name}: {error}") from error
