from ._align import Alignment, Pair, align
from ._diff import compare
from ._difference import Difference, Finding, Verdict
from ._explain import Element
from ._facts import Looking
from ._page import page_of
from ._record import WAYS, Call, Way, record_plan, record_program
from ._recorder import Made, OnStep, Recorder
from ._recording import Recording
from ._records import SCHEMA, Argument, Quantised, Step, TensorFacts, Trace
from ._values import ValueStore
from ._watch import Watch, watch

__all__ = [
    "SCHEMA",
    "WAYS",
    "Alignment",
    "Argument",
    "Call",
    "Difference",
    "Element",
    "Finding",
    "Looking",
    "Made",
    "OnStep",
    "Pair",
    "Quantised",
    "Recorder",
    "Recording",
    "Step",
    "TensorFacts",
    "Trace",
    "ValueStore",
    "Verdict",
    "Watch",
    "Way",
    "align",
    "compare",
    "page_of",
    "record_plan",
    "record_program",
    "watch",
]
