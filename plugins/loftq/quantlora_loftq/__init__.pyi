"""The public names of quantlora_loftq."""

from .calibrate import input_mean_squares as input_mean_squares
from .eva import (
    Eva as Eva,
    initialize_lora_eva_weights as initialize_lora_eva_weights,
)
from .eva_config import EvaConfig as EvaConfig
from .initializers import LoftQ as LoftQ, Qera as Qera
from .loop import Problem as Problem, Solution as Solution, solve as solve
from .low_rank import LowRank as LowRank, low_rank as low_rank
from .options import LoftQConfig as LoftQConfig
from .principal import OLoRA as OLoRA, Orthogonal as Orthogonal, PiSSA as PiSSA
from .replace import replace_lora_weights_loftq as replace_lora_weights_loftq
