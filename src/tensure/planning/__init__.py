"""Where and when: generators that turn a Program into a Plan, and a Plan's parts into what kernels run.

`host_plan` puts all of a Program on one machine. `plan_segment` fuses the ops of one entry into the steps a
single call of the kernels can run, over one arena; `plan_layouts` does so with the algorithm and layout of
every convolution chosen.

The public list is `__init__.pyi`; a name is loaded when it is first asked for, so that opening a
bundle loads no planner of kernels.
"""

from lazy_loader import attach_stub as _attach_stub

__getattr__, __dir__, __all__ = _attach_stub(__name__, __file__)
