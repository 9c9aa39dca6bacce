from ._align import Alignment, Pair, align
from ._breaks import Break, largest, limit_of, parse_break
from ._diff import compare
from ._difference import Difference, Finding, Verdict
from ._difference_text import difference_lines
from ._excerpt import excerpt
from ._explain import Element
from ._facts import Looking
from ._page import page_of
from ._played_back import play_back
from ._record import WAYS, Call, Way, record_plan, record_program
from ._recorder import Follower, Made, OnStep, Recorder
from ._recording import Recording
from ._records import SCHEMA, Argument, Quantised, Step, TensorFacts, Trace
from ._selection import Selection, parse_selection, split_reference
from ._stepper import Hit, Record, Stepper, Stop
from ._summary import Summary, select_steps, summarize
from ._text import (
    Traced,
    statistics_rows,
    step_line,
    step_lines,
    stop_line,
    summary_lines,
    table_of,
    table_rows,
    where_lines,
    without_empty,
)
from ._trace_file import TRACE_SUFFIX, load_recording, save_recording
from ._trace_json import trace_from_json
from ._values import ValueStore
from ._watch import Watch, watch

__all__ = [
    "SCHEMA",
    "TRACE_SUFFIX",
    "WAYS",
    "Alignment",
    "Argument",
    "Break",
    "Call",
    "Difference",
    "Element",
    "Finding",
    "Follower",
    "Hit",
    "Looking",
    "Made",
    "OnStep",
    "Pair",
    "Quantised",
    "Record",
    "Recorder",
    "Recording",
    "Selection",
    "Step",
    "Stepper",
    "Stop",
    "Summary",
    "TensorFacts",
    "Trace",
    "Traced",
    "ValueStore",
    "Verdict",
    "Watch",
    "Way",
    "align",
    "compare",
    "difference_lines",
    "excerpt",
    "largest",
    "limit_of",
    "load_recording",
    "page_of",
    "parse_break",
    "parse_selection",
    "play_back",
    "record_plan",
    "record_program",
    "save_recording",
    "select_steps",
    "split_reference",
    "statistics_rows",
    "step_line",
    "step_lines",
    "stop_line",
    "summarize",
    "summary_lines",
    "table_of",
    "table_rows",
    "trace_from_json",
    "watch",
    "where_lines",
    "without_empty",
]
