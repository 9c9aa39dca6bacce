"""Execute Plans: an opened bundle becomes a Session, a run an output with its receipt.

The public list is `__init__.pyi`; a name is loaded when it is first asked for, so that reading a file of
tensors loads no tokenizer.
"""

from lazy_loader import attach_stub as _attach_stub

__getattr__, __dir__, __all__ = _attach_stub(__name__, __file__)
