"""The machines: devices and the links between them, from a TOML file or from measurement.

Knows figures and names; knows nothing of plans. Speeds and rates are what someone measured or
stated (`source` says which); a Fleet never invents one.
"""

from __future__ import annotations

import hashlib
import math
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from tensure.errors import RecordError
from tensure.program import DTYPES

MAX_FILE: Final = 1 << 20
MAX_DEVICES: Final = 1 << 17


@dataclass(frozen=True, slots=True)
class Device:
    """One machine or a family of `count` like ones, named `card` or `card[0]`, `card[1]`, ...

    Args:
        flops: operations per second by dtype (f32, bf16, i8, ...); multiply and add count as two.
        memory: bytes.
        bandwidth: bytes per second between memory and arithmetic; None when unknown.
        isa: instruction set, e.g. `x86-64-v3`, `armv7e-m`.
        count: how many like it.
        source: "measured", "stated" or "simulated".
    """

    flops: Mapping[str, float]
    memory: int
    bandwidth: float | None = None
    isa: str = ""
    count: int = 1
    source: str = "stated"


@dataclass(frozen=True, slots=True)
class Link:
    """A way between two devices or device families, in both directions.

    Args:
        ends: the two names; `*` stands for any device.
        rate: bytes per second.
        latency_s: seconds for an empty message.
        source: "measured", "stated" or "simulated".
    """

    ends: tuple[str, str]
    rate: float
    latency_s: float
    source: str = "stated"


@dataclass(frozen=True, slots=True)
class Fleet:
    """Devices by name, and links; the first link that matches a pair holds for it."""

    devices: Mapping[str, Device] = field(default_factory=dict[str, Device])
    links: tuple[Link, ...] = ()

    def device(self, name: str) -> Device:
        """The device behind `d0` or `card[17]`."""
        base, _, rest = name.partition("[")
        found = self.devices.get(base)
        if found is None:
            raise RecordError(
                f"no device {name!r} in the fleet", wanted=", ".join(self.devices) or "a device"
            )
        member = rest.removesuffix("]") if rest else "0"
        if not member.isascii() or not member.isdigit() or int(member) >= found.count:
            raise RecordError(f"device {name!r}", wanted=f"{base}[0] to {base}[{found.count - 1}]")
        return found

    def link(self, one: str, other: str) -> Link:
        """The link between two devices."""
        pair = (one.partition("[")[0], other.partition("[")[0])
        for link in self.links:
            if any(_matches(link.ends, ends) for ends in (pair, pair[::-1], (one, other), (other, one))):
                return link
        raise RecordError(
            f"no link between {one} and {other}",
            wanted="a [[link]] for the pair, or one with ends ['*', '*']",
        )


def validate_fleet(fleet: Fleet) -> None:
    """Raise RecordError unless every figure is finite and positive and every link names known devices."""
    if not fleet.devices:
        raise RecordError("a fleet without devices", wanted="at least one [device.NAME]")
    if sum(device.count for device in fleet.devices.values()) > MAX_DEVICES:
        raise RecordError(f"over {MAX_DEVICES} devices")
    for label, device in fleet.devices.items():
        if not (label.isidentifier() and label.isascii()):
            raise RecordError(f"device name {label!r}", wanted="ASCII letters, digits and _")
        unknown = sorted(set(device.flops) - set(DTYPES))
        if unknown:
            raise RecordError(
                f"flops of dtype {unknown[0]!r}", place=f"device {label}", wanted=" ".join(DTYPES)
            )
        _positive(
            f"device {label}",
            count=device.count,
            memory=device.memory,
            **{f"flops.{k}": v for k, v in device.flops.items()},
        )
        if device.bandwidth is not None:
            _positive(f"device {label}", bandwidth=device.bandwidth)
    for link in fleet.links:
        label = f"link {link.ends[0]}-{link.ends[1]}"
        _positive(label, rate=link.rate)
        if not (math.isfinite(link.latency_s) and link.latency_s >= 0):
            raise RecordError(f"latency_s = {link.latency_s}", place=label, wanted="seconds, 0 or more")
        for end in link.ends:
            if end != "*":
                fleet.device(end)


def parse_fleet(text: str) -> Fleet:
    """A Fleet from TOML: `[device.NAME]` tables and `[[link]]` entries.

    Raises:
        RecordError: not TOML, an unknown key, a figure that is no positive number.
    """
    if len(text) > MAX_FILE:
        raise RecordError(f"a fleet file of {len(text)} characters", wanted=f"at most {MAX_FILE}")
    try:
        data = tomllib.loads(text)
    except (ValueError, RecursionError) as error:
        raise RecordError(f"not TOML: {error}") from None
    _only(data, {"device", "link"}, "the file")
    tables, rows = data.get("device", {}), data.get("link", [])
    if not isinstance(tables, dict) or not isinstance(rows, list):
        raise RecordError(
            "device or link of another kind", wanted="[device.NAME] tables and [[link]] entries"
        )
    fleet = Fleet(
        {label: _device(label, row) for label, row in tables.items()},  # pyright: ignore[reportUnknownVariableType, reportUnknownArgumentType]
        tuple(_link(number, row) for number, row in enumerate(rows)),  # pyright: ignore[reportUnknownVariableType, reportUnknownArgumentType]
    )
    validate_fleet(fleet)
    return fleet


def format_fleet(fleet: Fleet) -> str:
    """The Fleet as TOML that parses back equal; this text is what a Fleet's digest covers."""
    lines: list[str] = []
    for label, device in fleet.devices.items():
        flops = ", ".join(f"{key} = {value!r}" for key, value in sorted(device.flops.items()))
        lines += [f"[device.{label}]", f"flops = {{ {flops} }}", f"memory = {device.memory}"]
        if device.bandwidth is not None:
            lines.append(f"bandwidth = {device.bandwidth!r}")
        lines += [f'isa = "{device.isa}"', f"count = {device.count}", f'source = "{device.source}"', ""]
    for link in fleet.links:
        lines += ["[[link]]", f'ends = ["{link.ends[0]}", "{link.ends[1]}"]', f"rate = {link.rate!r}"]
        lines += [f"latency_s = {link.latency_s!r}", f'source = "{link.source}"', ""]
    return "\n".join(lines)


def _device(label: str, row: Any) -> Device:
    place = f"device {label}"
    _only(row, {"flops", "memory", "bandwidth", "isa", "count", "source"}, place)
    flops = row.get("flops")
    if not isinstance(flops, dict) or not flops:
        raise RecordError("no flops", place=place, wanted="flops = { f32 = 1e9 }")
    table = {str(key): _number(value, place, f"flops.{key}") for key, value in flops.items()}  # pyright: ignore[reportUnknownVariableType, reportUnknownArgumentType]
    bandwidth = _number(row["bandwidth"], place, "bandwidth") if "bandwidth" in row else None
    return Device(
        table,
        _integer(row.get("memory"), place, "memory"),
        bandwidth,
        _word(row.get("isa", ""), place, "isa"),
        _integer(row.get("count", 1), place, "count"),
        _source(row.get("source", "stated"), place),
    )


def _link(number: int, row: Any) -> Link:
    place = f"link {number + 1}"
    _only(row, {"ends", "rate", "latency_s", "source"}, place)
    ends = row.get("ends")
    if not isinstance(ends, list) or len(ends) != 2:  # pyright: ignore[reportUnknownArgumentType]
        raise RecordError(f"ends = {ends!r}", place=place, wanted='ends = ["d0", "d1"]')
    one, other = (_word(end, place, "ends") for end in ends)  # pyright: ignore[reportUnknownVariableType]
    rate, latency = _number(row.get("rate"), place, "rate"), _number(row.get("latency_s"), place, "latency_s")
    return Link((one, other), rate, latency, _source(row.get("source", "stated"), place))


def _matches(ends: tuple[str, str], pair: tuple[str, str]) -> bool:
    return all(end in ("*", name) for end, name in zip(ends, pair, strict=True))


def _only(row: Any, keys: set[str], place: str) -> None:
    if not isinstance(row, dict):
        raise RecordError(f"{row!r}", place=place, wanted="a table")
    for key in row:  # pyright: ignore[reportUnknownVariableType]
        if key not in keys:
            raise RecordError(f"unknown key {key!r}", place=place, wanted=", ".join(sorted(keys)))


def _number(value: Any, place: str, key: str) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or abs(value) > 1e30:
        raise RecordError(f"{key} = {value!r}", place=place, wanted="a number")
    return float(value)


def _integer(value: Any, place: str, key: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise RecordError(f"{key} = {value!r}", place=place, wanted="a whole number")
    if abs(value) >= 1 << 62:
        raise RecordError(
            f"{key} of {value.bit_length()} bits", place=place, wanted="a whole number below 2^62"
        )
    return value


def _word(value: Any, place: str, key: str) -> str:
    if (
        not isinstance(value, str)
        or len(value) > 128
        or not all(char.isalnum() or char in "_-.*[]" for char in value)
    ):
        raise RecordError(f"{key} = {value!r}", place=place, wanted="a short word")
    return value


def _source(value: Any, place: str) -> str:
    if not isinstance(value, str) or value not in ("measured", "stated", "simulated"):
        raise RecordError(f"source = {value!r}", place=place, wanted="measured, stated or simulated")
    return value


def _positive(place: str, **figures: float) -> None:
    for key, value in figures.items():
        if not (math.isfinite(value) and value > 0):
            raise RecordError(f"{key} = {value}", place=place, wanted="finite and above 0")


def fleet_digest(fleet: Fleet) -> str:
    """`sha256:<hex>` of the Fleet's text."""
    return f"sha256:{hashlib.sha256(format_fleet(fleet).encode()).hexdigest()}"
