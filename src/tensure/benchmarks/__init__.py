"""Each benchmark declared once, peers side by side, outputs compared before anything is timed.

`bench(name)` is `tensure.bench` and what `tensure bench NAME` runs. A benchmark is one declaration
(`_conv.py`, `_decode.py`, `_start.py`); how it is run is in `_measure.py`; results are files, tables and
pictures are made from them.
"""

from __future__ import annotations

from ._bench import bench, names
from ._limits import Measurement, bandwidth
from ._plot import bar_chart
from ._records import Bar, EngineError, NotMeasured, Report, Row
from ._table import markdown, table

__all__ = [
    "bench",
    "names",
    "bandwidth",
    "bar_chart",
    "markdown",
    "table",
    "Bar",
    "EngineError",
    "Measurement",
    "NotMeasured",
    "Report",
    "Row",
]
