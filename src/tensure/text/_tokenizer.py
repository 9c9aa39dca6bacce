"""Text to token ids and back, by the `tokenizers` library behind one guarded door.

Knows how a stream of ids becomes text that never shows half a character and never takes a character back.
Does not know any model's name, nor chat formats, nor what makes a file safe to read (`_tokenizer_file` does).
"""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import tokenizers

from tensure.errors import FormatError, InputError, LimitError, UnsupportedError

from ._tokenizer_file import checked_tree, parts_of

__all__ = ["TokenStream", "Tokenizer"]

MAX_PROMPT_BYTES = 1 << 20


class Tokenizer:
    """A model's tokenizer. Immutable; safe to share between threads."""

    def __init__(
        self,
        inner: tokenizers.Tokenizer,
        rules: _PieceRules,
        text_config: Mapping[str, Any],
        longest_text: int,
    ) -> None:
        self._inner = inner
        self._longest_text = longest_text
        self._rules = rules
        self._vocab_size = inner.get_vocab_size(with_added_tokens=True)
        self._special = frozenset(i for i, token in inner.get_added_tokens_decoder().items() if token.special)
        self._pieces: dict[int, bytes] = {}
        bound = max(inner.get_vocab().values(), default=0)
        self._bos_id = _config_id(text_config, "bos_id", bound)
        eos = text_config.get("eos_ids", ())
        if not isinstance(eos, list | tuple) or len(eos) > 64:
            raise FormatError(f"eos_ids is {eos!r:.40}", file="text.json", wanted="a short list of ids")
        self._eos_ids = tuple(_check_id(value, "eos_ids", bound) for value in eos)
        add_bos = text_config.get("add_bos")
        if add_bos is not None and not isinstance(add_bos, bool):
            raise FormatError(f"add_bos is {add_bos!r:.40}", file="text.json", wanted="true or false")
        if add_bos and self._bos_id is None:
            raise FormatError("add_bos without bos_id", file="text.json")
        self._add_bos: bool | None = add_bos

    @classmethod
    def from_json(cls, data: bytes, text_config: Mapping[str, Any] | None = None) -> Tokenizer:
        """Read a tokenizer.json (HF format, BPE or Unigram); `text_config` is the model's text.json.

        Raises:
            FormatError: not such a file, or broken.
            UnsupportedError: a part that we do not let through.
            LimitError: a size above our caps.
        """
        tree, longest_text = checked_tree(data)
        rules = _PieceRules.from_decoder(tree.get("decoder"))
        text = json.dumps(tree, ensure_ascii=False)
        with _library_errors("the tokenizer cannot be built", "Check that the file is whole"):
            inner = tokenizers.Tokenizer.from_str(text)
        return cls(inner, rules, text_config or {}, longest_text)

    @property
    def vocab_size(self) -> int:
        """Number of token ids, added tokens included."""
        return self._vocab_size

    @property
    def bos_id(self) -> int | None:
        """The id that begins a text, if the model's text.json names one."""
        return self._bos_id

    @property
    def eos_ids(self) -> tuple[int, ...]:
        """The ids that end a text, from the model's text.json."""
        return self._eos_ids

    @property
    def special_ids(self) -> frozenset[int]:
        """Ids of control tokens, which stand for no text."""
        return self._special

    def token_id(self, piece: str) -> int | None:
        """The id of exactly this piece, or None."""
        return self._inner.token_to_id(piece)

    def token_bytes(self, token_id: int) -> bytes:
        """The bytes one id stands for in the middle of a text (those of a special token: its name)."""
        piece = self._pieces.get(token_id)
        if piece is None:
            content = self._inner.id_to_token(token_id) if 0 <= token_id < 1 << 32 else None
            if content is None:
                raise InputError(f"no token has the id {token_id}", wanted=f"one of {self._vocab_size} ids")
            piece = content.encode() if token_id in self._special else self._rules.piece_bytes(content)
            self._pieces[token_id] = piece
        return piece

    def encode(self, text: str, *, add_special: bool = True, max_bytes: int = MAX_PROMPT_BYTES) -> list[int]:
        """Token ids of `text`; names of special tokens in it become those tokens, as chat templates need.

        With `add_special`, a beginning-of-text id is put first if text.json's `add_bos` says so; where it is
        silent, the file's own post-processor decides. A rendered chat names its own: pass False.

        Raises:
            LimitError: more than `max_bytes` of UTF-8, or more text than this tokenizer's patterns can be
                run over in bounded time.
            InputError: a lone surrogate.
        """
        if len(text) > max_bytes:
            raise LimitError(f"a prompt of {len(text)} characters", wanted=f"at most {max_bytes} bytes")
        if len(text) > self._longest_text:
            raise LimitError(
                f"a prompt of {len(text)} characters, for which this tokenizer's patterns can take too long",
                wanted=f"at most {self._longest_text}",
            )
        try:
            size = len(text.encode())
        except UnicodeEncodeError as error:
            raise InputError(
                "the text holds a lone surrogate, which is no character",
                place=f"character {error.start}",
                wanted="valid Unicode",
            ) from None
        if size > max_bytes:
            raise LimitError(f"a prompt of {size} bytes", wanted=f"at most {max_bytes}")
        with _library_errors("the text cannot be tokenized", "Shorten the text, or use another tokenizer"):
            ids = list(self._inner.encode(text, add_special_tokens=add_special and self._add_bos is None).ids)
        if add_special and self._add_bos and self._bos_id is not None:
            ids.insert(0, self._bos_id)
        return ids

    def decode(self, ids: Iterable[int], *, skip_special: bool = True) -> str:
        """The text of `ids`: exactly what a TokenStream gives for them, joined."""
        stream = self.stream(skip_special=skip_special)
        return "".join(stream.push(token_id) for token_id in ids) + stream.flush()

    def stream(self, *, skip_special: bool = True) -> TokenStream:
        """A fresh incremental decoder."""
        return TokenStream(self, strip_first=self._rules.strip_first, skip_special=skip_special)


class TokenStream:
    """Ids in, text out, one at a time: a character is shown once, when its last byte is there.

    Bytes that are no UTF-8 become U+FFFD, one for each maximal broken part, as soon as that is certain.
    """

    def __init__(self, tokenizer: Tokenizer, *, strip_first: bool, skip_special: bool) -> None:
        self._tokenizer = tokenizer
        self._strip_first = strip_first
        self._skip_special = skip_special
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def push(self, token_id: int) -> str:
        """The text that `token_id` completes; often its own, sometimes none, sometimes earlier bytes' too."""
        piece = self._tokenizer.token_bytes(token_id)
        if self._skip_special and token_id in self._tokenizer.special_ids:
            return ""
        if self._strip_first:
            # SentencePiece marks a text's start with a space that was never typed.
            piece = piece.removeprefix(b" ")
            self._strip_first = False
        return self._decoder.decode(piece)

    def flush(self) -> str:
        """What is left when no more ids will come: U+FFFD for an unfinished character, otherwise nothing."""
        return self._decoder.decode(b"", final=True)


# --- how a piece spells bytes ------------------------------------------------------------------------------


class _PieceRules:
    """One of two spellings: byte-level (a character is a byte) or SentencePiece (▁ is a space, <0xNN>)."""

    def __init__(
        self,
        *,
        byte_level: bool,
        space_mark: str = "",
        byte_fallback: bool = False,
        strip_first: bool = False,
    ):
        self.byte_level = byte_level
        self.space_mark = space_mark
        self.byte_fallback = byte_fallback
        self.strip_first = strip_first

    @classmethod
    def from_decoder(cls, decoder: object) -> _PieceRules:
        """Read the spelling off the file's decoder; refuse one we could not follow exactly."""
        parts = list(parts_of(decoder))
        kinds = [part["type"] for part in parts]
        if kinds == ["ByteLevel"]:
            return cls(byte_level=True)
        if kinds == ["Metaspace"]:
            mark, scheme = parts[0].get("replacement", "▁"), parts[0].get("prepend_scheme", "always")
            if isinstance(mark, str) and len(mark) == 1:
                return cls(byte_level=False, space_mark=mark, strip_first=scheme != "never")
        replace = {"type": "Replace", "pattern": {"String": "▁"}, "content": " "}
        strip = {"type": "Strip", "content": " ", "start": 1, "stop": 0}
        if [p for p in parts if p["type"] not in ("ByteFallback", "Fuse")] in ([replace], [replace, strip]):
            if kinds.count("Strip") == 0 or kinds.index(
                "Fuse" if "Fuse" in kinds else "Strip"
            ) <= kinds.index("Strip"):
                return cls(
                    byte_level=False,
                    space_mark="▁",
                    byte_fallback="ByteFallback" in kinds,
                    strip_first="Strip" in kinds,
                )
        raise UnsupportedError(f"a decoder of {kinds}", place="decoder", wanted="byte-level or SentencePiece")

    def piece_bytes(self, piece: str) -> bytes:
        if self.byte_level:
            # Like the library: a piece with any character outside the alphabet stands for itself.
            values = [_BYTE_OF.get(char) for char in piece]
            known = [value for value in values if value is not None]
            return bytes(known) if len(known) == len(values) else piece.encode()
        if self.byte_fallback and (match := _BYTE_PIECE.fullmatch(piece)):
            return bytes([int(match[1], 16)])
        return piece.replace(self.space_mark, " ").encode()


_BYTE_PIECE = re.compile(r"<0x([0-9A-Fa-f]{2})>")


def _byte_alphabet() -> dict[str, int]:
    """GPT-2's bijection: printable Latin-1 bytes are themselves, the other 68 follow from U+0100 on."""
    shown = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    hidden = [byte for byte in range(256) if byte not in shown]
    return {chr(byte): byte for byte in shown} | {chr(256 + i): byte for i, byte in enumerate(hidden)}


_BYTE_OF = _byte_alphabet()


def _config_id(config: Mapping[str, Any], key: str, bound: int) -> int | None:
    value = config.get(key)
    return None if value is None else _check_id(value, key, bound)


def _check_id(value: object, key: str, bound: int) -> int:
    if type(value) is not int or not 0 <= value <= bound:
        raise FormatError(f"{key} is {value!r:.40}", file="text.json", wanted=f"a token id from 0 to {bound}")
    return value


@contextmanager
def _library_errors(what: str, next_step: str) -> Iterator[None]:
    """Turn what the library raises into our errors: bare Exception, and PanicException from BaseException."""
    try:
        yield
    except BaseException as error:
        if (
            type(error) is Exception
            or type(error).__name__ == "PanicException"
            or isinstance(error, ValueError | TypeError)
        ):
            raise FormatError(f"{what}: {str(error)[:200]}", next_step=next_step) from None
        raise
