"""What both formats need. Read by the environment report too, so torch is not imported here."""

from quantlora.requirements import Requirement

#: 0.47 is the first version that has every form on every device: on a CPU, 0.46.1 lacks FP4 and
#: unpacks from uint8 storage only, and 0.45.5 packs nothing.
REQUIRES = (Requirement("bitsandbytes>=0.47"),)
