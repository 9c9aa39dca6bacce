"""Step through every tensor of a run, and find where two runs part.

`watch` records any eager torch code; `record_program` a Program run through torch, through our kernels or
through the plain reference; `record_plan` a Plan. `compare` lays two recordings side by side. Knows how
runs are looked at, not where models come from nor how anything is printed.
"""

from lazy_loader import attach_stub as _attach_stub

__getattr__, __dir__, __all__ = _attach_stub(__name__, __file__)
