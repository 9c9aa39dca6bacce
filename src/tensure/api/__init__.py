"""One function per verb, joining the rooms; `tensure.load`, `tensure.seal`, ... are these.

Every function is typed, and says "not yet" where nothing is built yet. torch is imported only when a
model runs or is exported.
"""

from __future__ import annotations

from ._cache import SealedOnce, default_output, plan_in_bundle, seal_once
from ._code import names_code
from ._examine import examine
from ._inspect import diff, inspect, watch
from ._known import KNOWN, KnownModel
from ._load import load
from ._not_yet import build, guard, quantize
from ._open import open  # noqa: A004
from ._plan import plan
from ._prove import check, proof_page, prove
from ._prove_script import prove_script
from ._prove_step import prove_step
from ._resharding import prove_resharding
from ._seal import seal
from ._verify import Verification, trusted_key_of, verify
from ._view import page_of

__all__ = [
    "load",
    "inspect",
    "watch",
    "diff",
    "quantize",
    "plan",
    "prove",
    "prove_script",
    "prove_step",
    "prove_resharding",
    "check",
    "guard",
    "seal",
    "seal_once",
    "open",
    "verify",
    "build",
    "default_output",
    "examine",
    "names_code",
    "page_of",
    "plan_in_bundle",
    "proof_page",
    "trusted_key_of",
    "KNOWN",
    "KnownModel",
    "SealedOnce",
    "Verification",
]
