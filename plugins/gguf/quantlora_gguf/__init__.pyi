"""The public names of quantlora_gguf."""

from .block_types import BLOCK_TYPES as BLOCK_TYPES, BlockType as BlockType
from .gguf_file import GgufFile as GgufFile
from .layer import GgufEmbedding as GgufEmbedding, GgufLinear as GgufLinear
from .quantizer import GgufQuantizer as GgufQuantizer
from .transformers_format import GgmlBlocksConfig as GgmlBlocksConfig, register as register
