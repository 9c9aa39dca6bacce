"""Does this Plan compute this Program? Two verdicts, on values and on storage, and a certificate.

A judge borrows nothing from the defendant: no planner, no kernel, no torch. The certificate checker in
turn borrows no op code from the prover.
"""

from ._check import CheckReport, check_certificate
from ._evenness import Uneven, uneven_cuts
from ._multiples import multiple_words
from ._prove import ProofResult, prove_plan, unconditional
from ._tensors import TensorVerdict

__all__ = [
    "CheckReport",
    "ProofResult",
    "TensorVerdict",
    "Uneven",
    "check_certificate",
    "multiple_words",
    "prove_plan",
    "unconditional",
    "uneven_cuts",
]
