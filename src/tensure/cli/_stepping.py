"""The view that steps through a run: commands in, steps out; at a terminal, or from a script through a pipe.

Knows commands and how they are written. What they do is done by `inspection.Stepper`.
"""

from __future__ import annotations

import difflib
import sys
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Final

from tensure.errors import InputError, TensureError
from tensure.inspection import statistics_rows, step_line, stop_line, table_rows, where_lines

from ._talk import Talk, printable

if TYPE_CHECKING:
    from tensure.inspection import Step, Stepper, Stop

__all__ = ["COMMANDS", "Stepping"]

COMMANDS: Final = (
    ("n [N]", "next step, or N steps on; stops earlier where a condition is met"),
    ("b [N]", "back one step, or N"),
    ("c", "continue to the next step that meets a condition, or to the end"),
    ("u N", "run until step N, or look at it if it is behind"),
    ("break COND", "stop where: nan, |x|>1e4, shape=1,*,7,7, name=GLOB, op=GLOB, module=GLOB"),
    ("breaks", "list the conditions"),
    ("delete N", "forget condition N"),
    ("l [N]", "list the steps around this one"),
    ("p NAME[part]", "print values, such as p logits[0, -1, :8]; without a name, what this step made"),
    ("s [NAME]", "statistics of a tensor"),
    ("w", "where: module, source line, and what the operands come from"),
    ("h", "this list"),
    ("q", "quit"),
)
PROMPT: Final = "(inspect) "
_LONGER: Final = {
    "next": "n", "back": "b", "continue": "c", "until": "u", "list": "l", "print": "p", "stats": "s",
    "statistics": "s", "where": "w", "help": "h", "?": "h", "quit": "q", "exit": "q", "d": "delete",
}  # fmt: skip
_AROUND: Final = 5
_MAX_LINE: Final = 1000


class Stepping:
    """One session of stepping; `run` reads commands until it is told to quit.

    Args:
        talk: says it.
        run: what is stepped through.
        about: turns an error of the run into what is said of it.
    """

    def __init__(self, talk: Talk, run: Stepper, about: Callable[[BaseException], BaseException]) -> None:
        self._talk = talk
        self._run = run
        self._about = about
        self._error: BaseException | None = None
        self._doings: dict[str, Callable[[str], None]] = {
            "n": self._next,
            "b": self._back,
            "c": self._go,
            "u": self._until,
            "break": self._break,
            "breaks": self._breaks,
            "delete": self._delete,
            "l": self._list,
            "p": self._print,
            "s": self._statistics,
            "w": self._where,
            "h": self._help,
        }

    def run(self, *, run_on: bool = False) -> None:
        """Read and do commands until `q` or the end of what there is to read.

        `run_on` goes to the first step that meets a condition, instead of to the first step.

        Raises:
            TensureError: what stopped the run, once the view is left.
        """
        before = "n"
        self._move(self._run.go if run_on else self._run.next)
        if self._run.at < 0 and self._error is not None:
            raise self._error
        for line in _lines():
            # An empty line does the last command again, as debuggers have it.
            words = line.strip() or before
            if words in ("q", "quit", "exit"):
                break
            before = words
            self._do(words)
        if self._error is not None:
            raise self._error

    def _do(self, words: str) -> None:
        name, _, rest = words.partition(" ")
        doing = self._doings.get(_LONGER.get(name, name))
        if doing is None:
            known = sorted({*self._doings, *_LONGER})
            near = difflib.get_close_matches(name[:40], known, n=1)
            self._say(
                f"no command {name[:40]!r}; " + (f"did you mean {near[0]!r}?" if near else "h lists them")
            )
            return
        try:
            doing(rest.strip())
        except TensureError as error:
            self._say(str(error))

    # --- going ---

    def _next(self, rest: str) -> None:
        count = _count(rest)
        self._move(lambda: self._run.next(count))

    def _back(self, rest: str) -> None:
        count = _count(rest)
        self._move(lambda: self._run.back(count))

    def _go(self, rest: str) -> None:
        _nothing(rest)
        self._move(self._run.go)

    def _until(self, rest: str) -> None:
        index = _number(rest)
        self._move(lambda: self._run.run_to(index))

    def _move(self, go: Callable[[], Stop]) -> None:
        try:
            stop = go()
        except (Exception, SystemExit) as error:  # noqa: BLE001 - the run's own: said, and raised at the end
            self._error = self._about(error)
            if self._run.at >= 0:
                self._say(f"the run stopped: {self._error}", bad=True)
                self._status(self._run.trace.steps[self._run.at])
            return
        if line := stop_line(stop):
            self._say(line, bad=stop.why == "break")
        if stop.step is not None:
            self._status(stop.step)

    def _status(self, step: Step) -> None:
        made = self._run.trace.made(step)
        bad = any(f.statistics and (f.statistics.nans or f.statistics.infinities) for f in made)
        self._say(step_line(self._run.trace, step), bad=bad)

    # --- conditions ---

    def _break(self, rest: str) -> None:
        from tensure.inspection import parse_break

        if not rest:
            self._breaks("")
            return
        condition = parse_break(rest)
        self._say(f"break {self._run.add_break(condition)}: {condition.text}")

    def _breaks(self, rest: str) -> None:
        _nothing(rest)
        for number, condition in self._run.breaks.items():
            self._say(f"break {number}: {condition.text}")
        if not self._run.breaks:
            self._say("no conditions; break nan sets one")

    def _delete(self, rest: str) -> None:
        self._say(f"deleted: {self._run.delete_break(_number(rest)).text}")

    # --- looking ---

    def _list(self, rest: str) -> None:
        around = _count(rest, _AROUND)
        steps = self._run.trace.steps
        at = self._run.at
        shown = steps[max(0, at - around) : at + around + 1]
        rows = table_rows(self._run.trace, shown)
        marks = ["  ", *("> " if row[0] == str(at) else "  " for row in rows[1:])]
        self._talk.rows(
            [(f"{mark}{row[0]}", *row[1:]) for mark, row in zip(marks, rows, strict=True)], to_data=True
        )
        if at + around >= len(steps) and not self._run.ended:
            self._say("  (what follows was not reached yet)")

    def _print(self, rest: str) -> None:
        from tensure.inspection import excerpt, split_reference

        trace = self._run.trace
        known = {**trace.tensors, **dict.fromkeys(trace.outputs)}
        wanted = [rest] if rest else list(self._step().outs)
        for words in wanted:
            name, selection = split_reference(words, known)
            values = self._run.values(name, selection)
            size = ",".join(map(str, values.shape))
            facts = trace.tensors[trace.outputs.get(name, name)]
            self._say(f"{words}  {facts.dtype}[{size}]")
            self._say(excerpt(values))

    def _statistics(self, rest: str) -> None:
        trace = self._run.trace
        for name in [rest] if rest else self._step().outs:
            facts = trace.tensors.get(trace.outputs.get(name, name))
            if facts is None:
                near = difflib.get_close_matches(name[:200], list(trace.tensors), n=1)
                raise InputError(
                    f"no tensor {name[:80]!r} so far",
                    next_step=f"Did you mean {near[0]!r}?" if near else None,
                )
            self._say(f"{facts.name}  {facts.type}  {facts.memory}  {facts.nbytes} bytes")
            self._talk.rows(statistics_rows(facts), to_data=True)

    def _where(self, rest: str) -> None:
        _nothing(rest)
        for line in where_lines(self._run.trace, self._step()):
            self._say(line)

    def _help(self, rest: str) -> None:
        self._talk.rows(COMMANDS, to_data=True)

    def _step(self) -> Step:
        if self._run.at < 0:
            raise InputError("no step has run yet", next_step="n runs the first one")
        return self._run.trace.steps[self._run.at]

    # --- saying ---

    def _say(self, text: str, *, bad: bool = False) -> None:
        if not bad or not sys.stdout.isatty():
            self._talk.data(text)
            return
        from rich.console import Console
        from rich.text import Text

        Console(highlight=False, soft_wrap=True).print(Text(printable(text), style="bold red"))


def _lines() -> Iterator[str]:
    """Lines of commands: with a prompt and a history at a terminal, plain from a pipe."""
    if sys.stdin.isatty() and sys.stdout.isatty():
        import readline  # noqa: F401 - gives input() a history and arrow keys

        while True:
            try:
                yield input(PROMPT)
            except EOFError:
                sys.stdout.write("\n")
                return
    while line := sys.stdin.readline(_MAX_LINE):
        yield line


def _count(rest: str, default: int = 1) -> int:
    return _number(rest) if rest else default


def _number(rest: str) -> int:
    if not rest.isascii() or not rest.isdigit() or len(rest) > 9:
        raise InputError(f"the number {rest[:40]!r}", wanted="a whole number")
    return int(rest)


def _nothing(rest: str) -> None:
    if rest:
        raise InputError(
            f"{rest[:40]!r} after a command that takes nothing", next_step="h lists the commands"
        )
