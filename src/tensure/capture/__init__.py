"""A framework's parallel step as a Program and a Plan: plain PyTorch, traced on a fake process group.

The public list is `__init__.pyi`; a name is loaded when it is first asked for, so that the name of a public
model is read, and refused, without torch.
"""

from lazy_loader import attach_stub as _attach_stub

__getattr__, __dir__, __all__ = _attach_stub(__name__, __file__)
