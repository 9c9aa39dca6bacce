"""A sealed bundle, opened and running: inputs in, outputs with receipts out.

Knows which parts a bundle has and in what order they are believed: the folder has been verified when it
    comes here, the texts are parsed, the plan is held against the Program, weights are checked block by
    block as they are loaded. Runs host plans only. Does not know files, keys on disk or the command line.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from threading import Lock
from types import TracebackType
from typing import TYPE_CHECKING, Self

import numpy as np

from tensure.bundle import Bundle, Plan, SigningKey, format_plan, load_signing_key, parse_plan, plan_digest
from tensure.errors import InputError, NotYetError, RecordError, TensureError, UnsupportedError
from tensure.planning import host_plan
from tensure.program import DecoderConfig, Program, digest, parse_program, read_decoder
from tensure.text import SamplingParams

from ._classification import Classification, no_recipe, rank_labels, read_labels
from ._decoder import Decoder, DecoderRun
from ._engine import Engine
from ._files import load_inputs
from ._generation import Generation
from ._image import ImageRecipe, load_image, prepare_image
from ._inputs import Inputs, check_inputs, check_types, suggestion
from ._machine import ran_through_kernels, ran_through_torch
from ._open_engine import Mode, best_mode, check_engine, open_engine, ran_through_engine
from ._receipt_book import ReceiptBook, SignedReceipt, Subject, check_nonce
from ._tensors import Array
from ._text_side import Message, TextSide, read_object
from ._tokens import EngineTokens, TokenSource, TorchTokens

if TYPE_CHECKING:
    from ._execution import HostExecution

__all__ = ["Session"]


class Session:
    """An opened bundle that runs. Its receipts form one chain; close it, or use it in a `with` block.

    Args:
        folder: the bundle, verified by `tensure.bundle`.
        plan: which of its plans to run; when left out, `host` or the only one.
        signing_key: signs the receipts; this machine's own key (made on first use) when left out.

    Raises:
        RecordError: the bundle's program or plan is malformed.
        NotYetError: the plan needs more than one rank on this machine.
    """

    def __init__(
        self, folder: Bundle, *, plan: str | None = None, signing_key: SigningKey | None = None
    ) -> None:
        self._folder = folder
        self.name = folder.name
        self.program = _read_program(folder)
        self.plan_name, self.plan = _read_plan(folder, plan)
        self.program_digest, self.plan_digest = digest(self.program), plan_digest(self.plan)
        _check_runs_here(self.plan, self.program, self.plan_name)
        self._signing_key = signing_key
        self._engines: dict[tuple[Mode, int], Engine] = {}
        self._lock = Lock()
        self._book = ReceiptBook(self._subject, self._load_key)

    def run(
        self,
        inputs: Inputs,
        *,
        entry: str | None = None,
        params: Mapping[str, int] | None = None,
        nonce: str | None = None,
    ) -> tuple[dict[str, Array], SignedReceipt]:
        """The outputs of one entry by name, and the receipt for them.

        Args:
            inputs: arrays by input name, or one array when the entry has one input.
            entry: which entry; the first when left out.
            params: the integers of the call; those that are the size of an input's dim may be left out.
            nonce: a text of the caller's that the receipt repeats, so that an old receipt cannot stand
                for this run.

        States start at zero and are dropped: `generate` is the way to carry them.

        Raises:
            InputError: inputs that the entry does not declare.
            DamageError: a block of the weights is not what was signed.
        """
        check_nonce(nonce)
        call = check_inputs(self.program, inputs, entry=entry, params=params)
        outputs = self._execution.run(call.entry, call.params, call.inputs)
        if self._execution.has_segment(call.entry, call.params):
            ran = ran_through_kernels("one segment of strict kernels")
        else:
            ran = ran_through_torch()
        return outputs, self._book.issue(outputs=outputs, inputs=call.inputs, ran=ran, nonce=nonce)

    def read_inputs(
        self,
        path: str | os.PathLike[str],
        *,
        entry: str | None = None,
        params: Mapping[str, int] | None = None,
    ) -> Inputs:
        """Inputs for `run` from an `.npy` or `.npz` file, whose declared types are checked before it is read.

        Raises:
            InputError: inputs that the entry does not declare. FormatError, LimitError: a broken file.
        """
        return load_inputs(
            path, check=lambda found: check_types(self.program, found, entry=entry, params=params)
        )

    def generate(
        self,
        prompt: str | Sequence[Message],
        *,
        max_tokens: int = 256,
        temperature: float = 0.0,
        top_p: float = 1.0,
        top_k: int = 0,
        min_p: float = 0.0,
        seed: int = 0,
        stop: Sequence[str] = (),
        nonce: str | None = None,
        system: str | None = None,
        raw: bool = False,
        mode: Mode | None = None,
        cache_bits: int = 16,
    ) -> Generation:
        """An answer to iterate over, piece by piece; nothing is computed before the first piece is asked for.

        Args:
            prompt: a text, or chat messages (`{"role": ..., "content": ...}`).
            max_tokens: most tokens to make; with the prompt they must fit the model's context.
            temperature: 0 is greedy; see `tensure.text.SamplingParams` for this and top_p, top_k, min_p,
                seed.
            stop: strings that end the answer; none of them is ever shown, even in part.
            nonce: as in `run`.
            system: a system message before the prompt.
            raw: take the text as it is, without the chat template.
            mode: "exact" or "fast", see `engine`; exact where this processor can when None.
            cache_bits: of a key or value in the cache: 16, 8 or 4.

        Raises:
            LimitError: prompt and max_tokens exceed the context, or weights and cache the memory; the message
                says by how much.
            UnsupportedError: the bundle does not generate text, or not in that mode.
        """
        check_nonce(nonce)
        params = SamplingParams(temperature, top_p, top_k, min_p, seed, max_tokens, _stops(stop))
        check_engine(best_mode() if mode is None else mode, cache_bits)
        if mode is not None or cache_bits != 16:
            self._decoder_config()
        decoder = Decoder(self.program, self.name)
        prompt_ids = self._text_side.prompt_ids(prompt, system=system, raw=raw)
        decoder.check_room(len(prompt_ids), params.max_tokens)
        return Generation(
            prompt=prompt_ids,
            params=params,
            text_side=self._text_side,
            start=lambda: self._tokens(prompt_ids, params, mode, cache_bits),
            book=self._book,
            nonce=nonce,
        )

    def engine(
        self,
        *,
        max_sequences: int = 8,
        cache_bits: int = 16,
        mode: Mode = "exact",
        threads: int | None = None,
        max_rows_per_step: int = 128,
        in_place: bool = False,
    ) -> Engine:
        """An engine for many sequences at once, with weights and a cache of its own; text is the caller's.

        Args:
            max_sequences: how many full contexts the cache holds; more sequences may run when they are
                shorter.
            cache_bits: of a key or value: 16, 8 or 4.
            mode: "exact": tokens and logits do not depend on batch, chunks, threads, arrivals, preemption or
                prefix hits. "fast": the quickest kernels, whatever they promise.
            threads: to compute with; torch's number or all cores when None.
            max_rows_per_step: tokens of one step, prompts and answers together.
            in_place: read GGUF blocks from the bundle instead of repacking them. Its sums have another order:
                tokens and logits stay the same in any company, but may differ from the repacked ones.

        Raises:
            UnsupportedError: the bundle is no decoder that our kernels run, or "exact" on a processor
                without fused multiply-add.
            LimitError: weights and cache do not fit into memory; the message has the numbers.
        """
        return open_engine(
            self._decoder_config(),
            self._folder.weights,
            salt=f"{self.program_digest} {self._folder.weights_root}",
            max_sequences=max_sequences,
            cache_bits=cache_bits,
            mode=mode,
            threads=threads,
            max_rows_per_step=max_rows_per_step,
            in_place=in_place,
        )

    def classify(
        self, image: Array | str | os.PathLike[str], *, top: int = 5, nonce: str | None = None
    ) -> Classification:
        """The likeliest labels of an image: pixels u8 [H, W, 3], or the path of a PNG or JPEG file.

        Raises:
            UnsupportedError: the bundle does not say how it reads images.
            InputError, FormatError, LimitError: not an image we read.
        """
        if "image.json" not in self._folder.assets:
            raise no_recipe(self.name)
        if isinstance(top, bool) or not isinstance(top, int) or not 1 <= top <= 1 << 20:
            raise InputError(f"top is {top!r:.40}", wanted="1 or more")
        recipe = ImageRecipe.from_json(read_object(self._folder.assets, "image.json"))
        pixels = image if isinstance(image, np.ndarray) else load_image(image)
        outputs, receipt = self.run(prepare_image(pixels, recipe), nonce=nonce)
        logits = next(iter(outputs.values()))
        return Classification(rank_labels(logits, read_labels(self._folder.assets), top), outputs, receipt)

    def load(self) -> Self:
        """Load the weights now rather than at the first run; returns the session."""
        if self._config is None:
            self._execution.load()
        else:
            self._engine_for(best_mode(), 16)
        return self

    def close(self) -> None:
        """Let go of the bundle's folder; what is loaded keeps running."""
        self._folder.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"Session({self.name!r}, plan {self.plan_name!r})"

    @property
    def folder(self) -> Bundle:
        """The opened bundle."""
        return self._folder

    @cached_property
    def _execution(self) -> HostExecution:
        from ._execution import HostExecution  # and with it the planners of kernels

        return HostExecution(self.program, self._folder.weights, self.plan)

    def _engine_for(self, mode: Mode, cache_bits: int) -> Engine:
        """The session's own, kept: what one answer computed of a prompt the next one finds."""
        with self._lock:
            key = (mode, cache_bits)
            if key not in self._engines:
                self._engines[key] = self.engine(max_sequences=2, mode=mode, cache_bits=cache_bits)
            return self._engines[key]

    @cached_property
    def _config(self) -> DecoderConfig | None:
        return read_decoder(self.program)

    def _decoder_config(self) -> DecoderConfig:
        config = self._config
        if config is None:
            raise UnsupportedError(
                f"{self.name} is no decoder that our kernels run",
                wanted="a Llama, Granite, Qwen2 or Qwen3 decoder as our readers give it",
                next_step="generate() runs any decoder, through torch",
            )
        return config

    def _tokens(
        self, prompt: Sequence[int], params: SamplingParams, mode: Mode | None, cache_bits: int
    ) -> TokenSource:
        if mode is None and cache_bits == 16 and self._config is None:
            return TorchTokens(lambda: DecoderRun(self._execution), prompt, params)
        chosen = best_mode() if mode is None else mode
        engine = self._engine_for(chosen, cache_bits)
        eos_ids = self._text_side.tokenizer.eos_ids
        (stream,) = engine.submit(prompt, replace(params, stop=()), eos_ids=eos_ids)
        return EngineTokens(engine, stream, ran_through_engine(chosen, cache_bits))

    @cached_property
    def _text_side(self) -> TextSide:
        return TextSide(self._folder.assets, self.name)

    def _subject(self) -> Subject:
        weights = self._folder.weights
        return Subject(
            self.program_digest,
            self.plan_digest,
            self._folder.weights_root,
            tuple(sorted({weights[name].encoding for name in weights})),
            self._folder.key.id,
        )

    def _load_key(self) -> SigningKey:
        if self._signing_key is None:
            self._signing_key = load_signing_key()
        return self._signing_key


def _read_program(folder: Bundle) -> Program:
    try:
        return parse_program(_text(folder.program))
    except TensureError as error:
        raise error.at(file="program.txt") from None


def _read_plan(folder: Bundle, wanted: str | None) -> tuple[str, Plan]:
    names = list(folder.plans)
    if not names:
        raise RecordError("the bundle has no plan", next_step="Seal the model again with `tensure seal`")
    label = wanted or ("host" if "host" in names else names[0])
    if label not in names or (wanted is None and label != "host" and len(names) > 1):
        raise InputError(
            f"no plan {label!r}" if wanted else f"{len(names)} plans and none called 'host'",
            wanted=f"one of {', '.join(names)}",
            next_step=suggestion(label, names),
        )
    try:
        return label, parse_plan(_text(folder.plans[label]))
    except TensureError as error:
        raise error.at(file=f"plans/{label}.txt") from None


def _check_runs_here(plan: Plan, program: Program, name: str) -> None:
    """Only a plan that is exactly the host plan runs: then what runs is the Program itself."""
    if plan.program != digest(program):
        raise RecordError(
            f"plan {name!r} is for {plan.program}", wanted=f"the bundle's program {digest(program)}"
        )
    tracks = list(plan.tracks.values())
    device = tracks[0].device.base if len(tracks) == 1 and tracks[0].device is not None else "host"
    without_fleet = replace(plan, fleet=None)
    if format_plan(without_fleet, notes=False) != format_plan(host_plan(program, device), notes=False):
        raise NotYetError(
            f"plan {name!r} has {plan.num_ranks()} ranks or changes the program's steps",
            wanted="a host plan (one rank, the program's own steps)",
            next_step="Plans for several machines run when the edge and rack engines land",
        )


def _text(data: bytes) -> str:
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise RecordError("not UTF-8", place=f"byte {error.start}") from None


def _stops(stop: Sequence[str]) -> tuple[str, ...]:
    if isinstance(stop, str):
        raise InputError("stop is one text", wanted="a list of texts", next_step="Write stop=[...]")
    if not isinstance(stop, Sequence) or not all(isinstance(text, str) for text in stop):
        raise InputError("stop is no list of texts", wanted="a list of texts", next_step="Write stop=[...]")
    return tuple(stop)
