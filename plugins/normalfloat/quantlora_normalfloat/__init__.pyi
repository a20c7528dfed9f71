"""The public names of quantlora_normalfloat."""

from .layer import NormalFloatLinear as NormalFloatLinear
from .quantizer import NormalFloatQuantizer as NormalFloatQuantizer
from .tables import level_table as level_table
from .transformers_format import NormalFloatConfig as NormalFloatConfig, register as register
