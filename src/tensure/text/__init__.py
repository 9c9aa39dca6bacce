"""Text in, token ids out, and back: tokenizers, chat templates, sampling, stop strings. No torch.

The public list is `__init__.pyi`; a name is loaded when it is first asked for, so that an engine that is
given ids loads neither tokenizers nor templates.
"""

from lazy_loader import attach_stub as _attach_stub

__getattr__, __dir__, __all__ = _attach_stub(__name__, __file__)
