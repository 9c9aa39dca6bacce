"""Chat messages to one prompt, by the template that the model's maker wrote.

Knows what surrounds a template: messages made plain, special tokens, a clock that the caller sets. Does not
know tokenizers, which template belongs to which model, nor how a stranger's program
is held (`_chat_sandbox` does).
"""

from __future__ import annotations

import datetime
import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

import jinja2

from tensure.errors import InputError, LimitError

from ._chat_budget import bounded, guarded, weigh
from ._chat_sandbox import ENVIRONMENT, HostFunction

__all__ = ["ChatTemplate", "render_chat"]

MAX_TEMPLATE_CHARS = 1 << 17


def render_chat(
    template: str,
    messages: Sequence[Mapping[str, Any]],
    *,
    bos_token: str = "",
    eos_token: str = "",
    add_generation_prompt: bool = True,
    tools: Sequence[Mapping[str, Any]] | None = None,
    now: datetime.datetime | None = None,
) -> str:
    """The prompt for `messages`; see `ChatTemplate.render`, which compiles the template only once."""
    return ChatTemplate(template).render(
        messages,
        bos_token=bos_token,
        eos_token=eos_token,
        add_generation_prompt=add_generation_prompt,
        tools=tools,
        now=now,
    )


class ChatTemplate:
    """A compiled template. Immutable; safe to share between threads.

    Raises:
        FormatError: not a template, or it uses what the sandbox does not offer.
        LimitError: too long, or too much to compile.
    """

    def __init__(self, source: str) -> None:
        if len(source) > MAX_TEMPLATE_CHARS:
            raise LimitError(
                f"a chat template of {len(source)} characters", wanted=f"at most {MAX_TEMPLATE_CHARS}"
            )
        self._template: jinja2.Template = guarded(lambda: ENVIRONMENT.from_string(source))

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        bos_token: str = "",
        eos_token: str = "",
        add_generation_prompt: bool = True,
        tools: Sequence[Mapping[str, Any]] | None = None,
        now: datetime.datetime | None = None,
    ) -> str:
        """The prompt. `now` is what templates that print a date see; there is no other clock.

        Raises:
            InputError: the template refused the messages, in its own words, or failed on them.
            LimitError: more steps or output than allowed.
        """
        names: dict[str, Any] = {
            "messages": _plain(list(messages), "messages"),
            "tools": None if tools is None else _plain(list(tools), "tools"),
            "documents": None,
            "bos_token": bos_token,
            "eos_token": eos_token,
            "add_generation_prompt": add_generation_prompt,
            "strftime_now": _Clock(now),
        }

        def run() -> str:
            # Emitted text was charged to the budget piece by piece, so the list is bounded.
            return "".join(self._template.generate(names))

        return bounded(guarded(run))


def _plain(value: Any, place: str) -> Any:
    """A copy in JSON's own types, so that no object with methods of its own enters the sandbox."""
    try:
        weigh(value)
        text = json.dumps(value)
    except LimitError as error:
        raise LimitError("too long for a chat template", place=place, wanted=error.wanted) from None
    except (TypeError, ValueError, RecursionError):
        raise InputError("not plain text, numbers, lists and mappings", place=place) from None
    return json.loads(text)


class _Clock(HostFunction):
    """strftime of a moment that the caller chose."""

    _FORMAT = re.compile(r"(?:[^%]|%-?[A-Za-z%]){0,100}")  # no widths: glibc honours %1000000000Y

    def __init__(self, now: datetime.datetime | None) -> None:
        self._now = now

    def __call__(self, form: str) -> str:
        if self._now is None:
            raise jinja2.TemplateError("it prints the date, and none was given (pass now=)")
        if not isinstance(form, str) or not self._FORMAT.fullmatch(form):
            raise jinja2.TemplateError("it prints the date in a form we do not offer")
        return self._now.strftime(form)
