"""The text side of a bundle: its tokenizer, its chat template, and which ids end a text.

Knows the side files by name (`tokenizer.json`, `text.json`, `chat_template.jinja`). Does not know the
Program.
"""

from __future__ import annotations

import datetime
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

from tensure.errors import FormatError, InputError, TensureError, UnsupportedError
from tensure.program import parse_json

if TYPE_CHECKING:
    from tensure.text import ChatTemplate

__all__ = ["Message", "TextSide"]

Message: TypeAlias = Mapping[str, Any]
"""One chat message: `{"role": "user", "content": "..."}`, with whatever else the template reads."""


class TextSide:
    """Prompts in, token ids out.

    Raises:
        UnsupportedError: the bundle has no tokenizer.
        FormatError: a side file is broken.
    """

    def __init__(self, assets: Mapping[str, bytes], name: str) -> None:
        from tensure.text import Tokenizer

        if "tokenizer.json" not in assets:
            raise UnsupportedError(f"{name} has no tokenizer", next_step="Use run() with tensors instead")
        config = read_object(assets, "text.json")
        try:
            self.tokenizer = Tokenizer.from_json(assets["tokenizer.json"], config)
        except TensureError as error:
            raise error.at("tokenizer.json") from None
        template = assets.get("chat_template.jinja")
        self._template = None if template is None else _template(template)

    def prompt_ids(
        self, prompt: str | Sequence[Message], *, system: str | None = None, raw: bool = False
    ) -> list[int]:
        """The ids of a prompt: a text is one user message, unless `raw` or the model has no chat template.

        Raises:
            InputError: messages without a template, or `raw` with messages or a system text.
        """
        is_chat = isinstance(prompt, Sequence) and not isinstance(prompt, bytes)
        if not is_chat or not isinstance(system, str | None):
            kind = type(system if is_chat else prompt).__name__
            raise InputError(
                f"{'the system message' if is_chat else 'the prompt'} is a {kind}",
                wanted="a text, or chat messages",
                next_step='Pass a str, or [{"role": "user", "content": "..."}]',
            )
        if raw and (system is not None or not isinstance(prompt, str)):
            raise InputError("raw with messages or a system text", wanted="raw with one text")
        if isinstance(prompt, str) and (raw or (self._template is None and system is None)):
            return self._not_empty(self.tokenizer.encode(prompt))
        if self._template is None:
            raise InputError(
                "this model has no chat template", next_step="Pass one text, and no system message"
            )
        messages: list[Message] = [] if system is None else [{"role": "system", "content": system}]
        messages += [{"role": "user", "content": prompt}] if isinstance(prompt, str) else list(prompt)
        text = self._template.render(
            messages,
            bos_token=self._special(self.tokenizer.bos_id),
            eos_token=self._special(next(iter(self.tokenizer.eos_ids), None)),
            # The ids of the finished prompt stand in the receipt, the date with them.
            now=datetime.datetime.now(datetime.UTC),
        )
        return self._not_empty(self.tokenizer.encode(text, add_special=False))

    def _special(self, token_id: int | None) -> str:
        return "" if token_id is None else self.tokenizer.token_bytes(token_id).decode("utf-8", "replace")

    def _not_empty(self, ids: list[int]) -> list[int]:
        if not ids:
            raise InputError("the prompt is empty", wanted="at least one token")
        return ids


def read_object(assets: Mapping[str, bytes], name: str) -> dict[str, Any]:
    """The JSON object in a side file; an empty one when there is no such file."""
    if name not in assets:
        return {}
    try:
        found = parse_json(assets[name], max_bytes=4 << 20, max_depth=16, max_items=100_000, floats=True)
    except TensureError as error:
        raise error.at(name) from None
    if not isinstance(found, dict):
        raise FormatError("not a JSON object", file=name)
    return found


def _template(data: bytes) -> ChatTemplate:
    from tensure.text import ChatTemplate

    try:
        return ChatTemplate(data.decode("utf-8"))
    except UnicodeDecodeError:
        raise FormatError("not UTF-8", file="chat_template.jinja") from None
    except TensureError as error:
        raise error.at("chat_template.jinja") from None
