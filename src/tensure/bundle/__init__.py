"""The frozen records of a run - Fleet, Plan, Proof, Bundle, Receipt - and their one format on disk.

Also the one numpy evaluator that runs any Plan. No torch, no kernels, no pickle.

The public list is `__init__.pyi`; a name is loaded when it is first asked for, so that verifying a receipt
loads no evaluator.
"""

from lazy_loader import attach_stub as _attach_stub

__getattr__, __dir__, __all__ = _attach_stub(__name__, __file__)
