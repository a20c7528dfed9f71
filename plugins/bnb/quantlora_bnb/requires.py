"""What both formats need. Read by the environment report too, so torch is not imported here."""

from quantlora.requirements import Requirement

#: 0.46 is the first version whose CPU kernels quantize and dequantize; 0.45.5 needs a GPU to pack.
REQUIRES = (Requirement("bitsandbytes>=0.46"),)
