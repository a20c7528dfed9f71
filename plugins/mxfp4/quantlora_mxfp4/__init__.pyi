"""The public names of quantlora_mxfp4."""

from .layer import Mxfp4Linear as Mxfp4Linear
from .quantizer import Mxfp4Quantizer as Mxfp4Quantizer
from .stack import Mxfp4Experts as Mxfp4Experts
