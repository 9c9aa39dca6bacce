"""What must be computed: expressions, ops, blocks, types, reference semantics, the walk that expands them.

No torch and no kernels. Readers of files and frameworks are leaf modules imported by name
(`tensure.program.from_gguf`, `tensure.program.from_torch`, ...), never from here.

The public list is `__init__.pyi`; a name is loaded when it is first asked for, so that verifying a receipt
loads no evaluator.
"""

from lazy_loader import attach_stub as _attach_stub

__getattr__, __dir__, __all__ = _attach_stub(__name__, __file__)
