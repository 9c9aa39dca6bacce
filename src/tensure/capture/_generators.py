"""Which generator random numbers come from, and how far along it is: what tells two draws apart.

A generator's real state is the record. Drawing puts it into one that follows from the state before and
from what was drawn, so that whatever code does with states (seeds, saves, restores, forks, clones) is done
to the real thing; nobody's functions are replaced but those of an accelerator, whose generator is here the
processor's, and the one of distributed tensors, which says which shard of a draw is drawn.
"""

from __future__ import annotations

import contextlib
import hashlib
import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Final

import torch
import torch.distributed.tensor._dispatch
import torch.distributed.tensor._random
from torch._subclasses.fake_tensor import unset_fake_temporarily
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes

from tensure.errors import UnsupportedError

from ._coordinate import is_coordinate

__all__ = ["Draw", "Generators", "State", "counted_draws", "own_generators"]

_SYNCHRONIZED: Final = 0x73796E63
"""Stands for the seed of the state that a distributed tensor's first draw takes from rank 0."""

_MADE: Final = set[int]()
"""Seeds of all states that `Generators` made in this process, of whichever rank: nobody else's."""


@dataclass(frozen=True, slots=True)
class Draw:
    """Where numbers come from.

    Args:
        seed: of the generator.
        start: how many numbers were drawn since it was seeded.
        after: a digest of the draws that took them.
        offset: where in this draw the rank's own numbers begin, if they are a shard; else None.
        extent: how many numbers the draw takes from the generator, on whichever rank.
    """

    seed: int
    start: int
    after: str
    offset: int | None
    extent: int


@dataclass(frozen=True, slots=True)
class State:
    """How far along a generator is: its seed, how many numbers were drawn since, a digest of the draws."""

    seed: int
    start: int = 0
    after: str = ""


@dataclass
class Generators:
    """What is known of the generators' states of one rank.

    Args:
        refusal: why no numbers may be drawn now; empty where they may.
        is_live: of a process that has drawn before, nobody saw what: states that are there are taken for
            what they are. Two of one seed are one, or nothing is known of what they have in common: `bases`
            says which there are, and whoever puts ranks together must see that each seed has one.
    """

    refusal: str = ""
    is_live: bool = False
    bases: dict[int, set[str]] = field(default_factory=dict[int, set[str]])
    """By seed: from which states numbers were drawn that were there before; empty: as just seeded."""
    _known: dict[bytes, State] = field(default_factory=dict[bytes, State])
    _touched: list[tuple[torch.Generator, torch.Tensor]] = field(
        default_factory=list[tuple[torch.Generator, torch.Tensor]]
    )
    """Generators besides torch's own that were drawn from, and the state that each had before."""
    log: list[State] | None = None
    """While it is kept: the state before each draw, in order."""
    synchronized_at: int | None = None
    """How many draws the log had when ranks were given one state."""
    _parents: dict[State, tuple[State, str, int]] = field(default_factory=dict[State, tuple[State, str, int]])
    """From which state, and by which draw of how many numbers, a state came to be."""
    _region: tuple[int, int] | None = None
    """Of a distributed tensor's draw: where its shard begins, and the extent of all."""

    def take(
        self, law: str, count: int, dtype: torch.dtype, generator: torch.Generator | None = None
    ) -> Draw:
        """The next `count` numbers of a generator, torch's own by default.

        Numbers of two dtypes are not the same, and leave a generator in two states.

        Raises:
            UnsupportedError: numbers may not be drawn here, or the state is one that nothing here made.
        """
        if self.refusal:
            raise UnsupportedError("random numbers", wanted=self.refusal)
        found = torch.default_generator if generator is None else generator
        offset, extent = self._region or (None, count)
        if offset and offset >= extent:
            raise UnsupportedError(
                f"a shard that begins at {offset} of {extent} random numbers",
                wanted="shards of at least 4 numbers, for torch rounds where they begin up to 4",
            )
        now = self._state(found)
        if self.log is not None:
            self.log.append(now)
        text = f"{now.after} {law} {dtype} {extent}"
        after = hashlib.blake2b(text.encode(), digest_size=6).hexdigest()
        then = State(now.seed, now.start + extent, after)
        self._parents.setdefault(then, (now, f"{law} {dtype}", extent))
        self._put(found, then)
        return Draw(now.seed, now.start, now.after, offset, extent)

    def synchronize(self) -> None:
        """Give all ranks one state, as rank 0's sent to all does."""
        if self.log is not None and self.synchronized_at is None:
            self.synchronized_at = len(self.log)
        self._put(torch.default_generator, self.state_synchronized())

    def state_synchronized(self) -> State:
        """The state that `synchronize` gives."""
        return State(_SYNCHRONIZED)

    def seen(self, held: torch.Generator | torch.Tensor) -> State | bytes:
        """The state of a generator, or one that is saved; a digest of it if nothing here made it."""
        if isinstance(held, torch.Generator):
            generator = held
        else:
            with unset_fake_temporarily(), _disable_current_modes():
                generator = torch.Generator()
                try:
                    generator.set_state(held)
                except (RuntimeError, TypeError):
                    return b"no state"
        try:
            return self._state(generator)
        except UnsupportedError:
            return _digest(generator)

    def since(self, state: State, later: State) -> tuple[tuple[str, int], ...] | None:
        """What was drawn from one state to a later one, in order; None if it does not lead there."""
        found: list[tuple[str, int]] = []
        while later != state:
            if later not in self._parents or later.start < state.start:
                return None
            later, law, extent = self._parents[later]
            found.append((law, extent))
        return tuple(reversed(found))

    @contextlib.contextmanager
    def shard(self, offset: int, extent: int) -> Iterator[None]:
        """Draw one shard of the numbers of a distributed tensor."""
        self._region = (offset, extent)
        try:
            yield
        finally:
            self._region = None

    def restore(self) -> None:
        """Put every generator but torch's own into the state that it had before its first draw.

        All ranks are traced in one process and may share a generator; each process of a real run has its own.
        """
        while self._touched:
            generator, state = self._touched.pop()
            generator.set_state(state)

    def _state(self, generator: torch.Generator) -> State:
        key, seed = _digest(generator), generator.initial_seed()
        if key not in self._known:
            if seed in _MADE:
                raise UnsupportedError(
                    "random numbers that were drawn where nothing is traced, or by a state of another trace",
                    wanted="draws by tensors of the model, the parallel function and the step alone",
                )
            is_fresh = key == _digest(torch.Generator().manual_seed(seed))
            told = seed - (1 << 64) if seed >= 1 << 63 else seed
            if self.is_live:
                base = "" if is_fresh else key.hex()
                self.bases.setdefault(told, set()).add(base)
                self._known[key] = State(told, 0, base)
                return self._known[key]
            if not is_fresh:
                raise UnsupportedError(
                    f"a generator of seed {seed} of which numbers were drawn before",
                    wanted="generators that are seeded and then drawn from where the trace sees it",
                )
            self._known[key] = State(told)
        return self._known[key]

    def _put(self, generator: torch.Generator, state: State) -> None:
        if generator is not torch.default_generator and all(generator is not one for one, _ in self._touched):
            with unset_fake_temporarily(), _disable_current_modes():
                self._touched.append((generator, generator.get_state()))
        text = f"{state.seed} {state.start} {state.after}"
        seed = int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little") >> 1
        generator.manual_seed(seed)
        _MADE.add(seed)
        self._known[_digest(generator)] = state


def _digest(generator: torch.Generator) -> bytes:
    with unset_fake_temporarily(), _disable_current_modes():
        data = generator.get_state().numpy().tobytes()
    return hashlib.blake2b(data, digest_size=16).digest()


@contextlib.contextmanager
def own_generators(generators: Generators) -> Iterator[None]:
    """Begin as a process that was just started, and leave torch's generator, and others, as they were.

    Until the end an accelerator's generator is the processor's, and distributed tensors draw as they do on
    accelerators: each shard its own part of what all ranks' generators go forward by.
    """
    kept = torch.default_generator.get_state()
    torch.default_generator.manual_seed(torch.Generator().initial_seed())
    random: Any = torch.distributed.tensor._random
    dispatch: Any = torch.distributed.tensor._dispatch

    class Tracker(random.OffsetBasedRNGTracker):  # type: ignore[misc]
        """Torch's own, but that it tells which shard is drawn instead of moving an accelerator's state."""

        def __init__(self, device_mesh: Any, *told: bool, run_state_sync: bool = True) -> None:
            self._use_distribute_region = True
            if run_state_sync:  # by position it says whether this is a trace
                generators.synchronize()

        @contextlib.contextmanager
        def _distribute_region(self, spec: Any, generator: torch.Generator | None = None) -> Iterator[None]:
            if not self.distribute_region_enabled:
                yield
                return
            start, end = self._compute_rng_offsets(spec)
            with generators.shard(int(start), int(end)):
                yield

    cuda: Any = torch.cuda
    replaced: list[tuple[Any, str, Any]] = [
        (random, "_rng_tracker", None),
        (random, "OffsetBasedRNGTracker", Tracker),
        (random, "is_rng_supported_mesh", lambda mesh: True),
        (dispatch, "is_rng_supported_mesh", lambda mesh: True),
        (torch.random, "_manual_seed_impl", _seed),
        (cuda, "manual_seed", _seed),
        (cuda, "manual_seed_all", _seed),
        (cuda, "get_rng_state", lambda device="cuda": torch.get_rng_state()),
        (cuda, "set_rng_state", lambda new_state, device="cuda": torch.set_rng_state(new_state)),
        (cuda, "initial_seed", torch.initial_seed),
    ]
    before = [(owner, name, getattr(owner, name)) for owner, name, _ in replaced]
    for owner, name, value in replaced:
        setattr(owner, name, value)
    try:
        yield
    finally:
        for owner, name, value in before:
            setattr(owner, name, value)
        generators.restore()
        torch.default_generator.set_state(kept)


def _seed(seed: Any) -> torch.Generator:
    """Seed torch's generator; it is told a rank's place, and tells nobody but those who read the numbers."""
    if is_coordinate(seed):
        seed = seed.reads.soften(seed.form)
    return torch.default_generator.manual_seed(int(seed))


class counted_draws(TorchDispatchMode):
    """Where modules are built and nothing is traced: generators go forward as if numbers were drawn."""

    def __init__(self, generators: Generators) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._generators = generators

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = kwargs or {}
        found = func(*args, **given)
        if torch.Tag.nondeterministic_seeded in func.tags and isinstance(found, torch.Tensor):
            count = math.prod(found.shape)
            self._generators.take(func._schema.name, count, found.dtype, given.get("generator"))
        return found
