"""docs/ops.md says what the table says."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

from tensure.program._ops import FAMILIES, listed

TOOL = Path(__file__).resolve().parents[2] / "tools" / "ops_table.py"


def tool() -> Any:
    spec = importlib.util.spec_from_file_location("ops_table", TOOL)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_page_is_up_to_date() -> None:
    assert tool().PAGE.read_text(encoding="utf-8") == tool().page(), "run python tools/ops_table.py"


def test_every_op_stands_on_the_page_once() -> None:
    text = tool().page()
    assert all(text.count(f"| `{name}(") == 1 for name in listed())
    assert {definition.family for definition in listed().values()} == {family.__name__ for family in FAMILIES}
