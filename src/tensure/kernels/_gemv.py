"""Few rows of activations times a matrix stored in 4 or 8 bits: the checked face of native/gemv.

    y[b, m] = sum over k of W[m, k] * x[b, k]

W is packed in one of our own layouts (`pack_int8`, `pack_int4`) or stands in a GGUF file and is read where it
is (`map_gguf`). The caller chooses the arithmetic: "exact" multiplies the decoded weight by the float32
activation, "fine" and "fast" round activations to 15 or 8 bits first. `gemv_reference` defines all, bit for
bit. Knows nothing of files or models. Letters: M rows of W, K columns, B rows of x, G groups of a row.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Final, Literal, TypeAlias, TypeVar

import numpy as np
from numpy.typing import NDArray

from tensure.errors import InputError, UnsupportedError
from tensure.kernels._buffers import aligned_bytes, check_threads
from tensure.kernels._isa import native

__all__ = [
    "ARITHMETICS",
    "GEMV_FORMATS",
    "Activations",
    "GemvWeights",
    "exact_is_fused",
    "gemv",
    "map_gguf",
    "pack_int4",
    "pack_int8",
    "quantize_activations",
    "read_memory",
]

Arithmetic: TypeAlias = Literal["exact", "fine", "fast"]
Rounded: TypeAlias = Literal["fine", "fast"]
Bytes: TypeAlias = NDArray[np.uint8]
Floats: TypeAlias = NDArray[np.float32]
Halves: TypeAlias = NDArray[np.float16]
Integers: TypeAlias = NDArray[np.integer]

_Int = TypeVar("_Int", bound=np.integer)

ARITHMETICS: Final = ("exact", "fine", "fast")  # in the order of GemvArithmetic in native/gemv/gemv.h
ROWS: Final = 16
MAX_ELEMENTS: Final = 1 << 40
READ_BYTES: Final = 2048


@dataclass(frozen=True, slots=True)
class Format:
    """What the C++ side calls it, and for GGUF the elements and bytes of one block."""

    index: int
    block_cols: int = 0
    block_bytes: int = 0


# Name to layout, in the order of GemvFormat in native/gemv/gemv.h.
GEMV_FORMATS: Mapping[str, Format] = MappingProxyType(
    {
        "int8": Format(0),
        "int4": Format(1),
        "int4_min": Format(2),
        "q4_0": Format(3, 32, 18),
        "q4_1": Format(4, 32, 20),
        "q8_0": Format(5, 32, 34),
        "q4_k": Format(6, 256, 144),
    }
)

_NOTHING: Final = np.zeros(0, np.uint8)


@dataclass(frozen=True, slots=True, eq=False)
class GemvWeights:
    """One matrix as it is stored; `pack_int8`, `pack_int4`, `repack_gguf` and `map_gguf` make and check it.

    Args:
        group: elements of a row that share a scale; 0: the whole row, or the format says.
        q: the integers, or GGUF blocks, as bytes.
        scales: bytes of float32 (int8) or half (int4) scales, one a row and group; empty for GGUF.
        minimums: bytes of halves, for int4_min only.

    Raises:
        InputError: sizes that do not fit each other.
        UnsupportedError: no such format.
    """

    format: str
    num_rows: int
    num_cols: int
    group: int
    q: Bytes = field(repr=False)
    scales: Bytes = field(repr=False)
    minimums: Bytes = field(repr=False)

    def __post_init__(self) -> None:
        layout = _check_format("format", self.format, GEMV_FORMATS)
        check_shape(self.num_rows, self.num_cols)
        if layout.block_cols:
            _check_group(self.group, (0,))
            check_whole_blocks(self.num_cols, layout)
        else:
            _check_group(self.group, (0, 32, 64, 128) if self.format == "int8" else (32, 64, 128))
        wanted = stored_bytes(self.format, self.num_rows, self.num_cols, self.group)
        for place, array, nbytes in zip(
            ("q", "scales", "minimums"), (self.q, self.scales, self.minimums), wanted, strict=True
        ):
            _check_array(place, array, np.dtype(np.uint8), 1)
            if array.size != nbytes:
                raise InputError(
                    f"got {array.size} bytes",
                    place=place,
                    wanted=f"{nbytes} for {self.num_rows} x {self.num_cols} of {self.format}",
                )

    @property
    def nbytes(self) -> int:
        """Bytes as stored: integers, scales and minimums, filling included."""
        return self.q.nbytes + self.scales.nbytes + self.minimums.nbytes


@dataclass(frozen=True, slots=True, eq=False)
class Activations:
    """Rows of x as integers, for any matrix with as many columns. Made by `quantize_activations`.

    Args:
        arithmetic: "fine" for 15 bits, "fast" for 8.

    Raises:
        InputError: sizes that do not fit each other.
    """

    batch: int
    num_cols: int
    data: Bytes = field(repr=False)
    arithmetic: Rounded = "fast"

    def __post_init__(self) -> None:
        _check_count("batch", self.batch, 0)
        _check_count("num_cols", self.num_cols)
        if self.batch * self.num_cols > MAX_ELEMENTS:
            raise InputError(
                f"got {self.batch} x {self.num_cols}",
                place="batch",
                wanted=f"at most {MAX_ELEMENTS} elements",
            )
        _check_array("data", self.data, np.dtype(np.uint8), 1)
        wanted = native().gemv_activation_bytes(_index(self.arithmetic), self.num_cols, self.batch)
        if self.data.size != wanted:
            raise InputError(
                f"got {self.data.size} bytes",
                place="data",
                wanted=f"{wanted} for {self.batch} rows of {self.num_cols} columns",
            )


def pack_int8(q_MK: NDArray[np.int8], scales: Floats, group: int | None = None) -> GemvWeights:
    """W = q * scale, 16 rows interleaved. The last group is filled with zeros.

    Args:
        q_MK: int8 integers.
        scales: float32, finite; one a row [M] when `group` is None, else [M, ceil(K / group)].
        group: None, 32, 64 or 128.

    Raises:
        InputError: an argument is not as described.
    """
    num_rows, num_cols = _check_matrix("q_MK", q_MK, np.dtype(np.int8))
    _check_group(group, (None, 32, 64, 128))
    groups = 1 if group is None else -(-num_cols // group)
    wanted = (num_rows,) if group is None else (num_rows, groups)
    _check_scales("scales", scales, np.dtype(np.float32), wanted)
    filled = _filled(q_MK, group or 32, 0)
    blocks = filled.reshape(filled.shape[0] // ROWS, ROWS, filled.shape[1] // 4, 4).transpose(0, 2, 1, 3)
    packed = _aligned(blocks)
    rows = _interleaved(scales.reshape(num_rows, groups))
    return GemvWeights("int8", num_rows, num_cols, group or 0, packed, rows, _NOTHING)


def pack_int4(
    q_MK: Integers, scales_MG: Halves, minimums_MG: Halves | None = None, *, group: int = 32
) -> GemvWeights:
    """W = q * scale with q in -8..7, or q * scale + minimum with q in 0..15; 16 rows interleaved.

    Args:
        q_MK: integers of any integer dtype.
        scales_MG: half precision, finite, [M, ceil(K / group)]. Round to half before choosing q.
        minimums_MG: the same, or None.
        group: 32, 64 or 128.

    Raises:
        InputError: an argument is not as described.
    """
    num_rows, num_cols = _check_matrix("q_MK", q_MK, None)
    _check_group(group, (32, 64, 128))
    least, most = (-8, 7) if minimums_MG is None else (0, 15)
    low, high = int(q_MK.min()), int(q_MK.max())
    if low < least or high > most:
        raise InputError(f"got values from {low} to {high}", place="q_MK", wanted=f"{least} to {most}")
    wanted = (num_rows, -(-num_cols // group))
    _check_scales("scales_MG", scales_MG, np.dtype(np.float16), wanted)
    if minimums_MG is not None:
        _check_scales("minimums_MG", minimums_MG, np.dtype(np.float16), wanted)
    filled = _filled((q_MK.astype(np.int16) - least).astype(np.uint8), group, -least)
    # [block, row, unit of 32 columns, low or high four bits, four words, 4 bytes]
    units = filled.reshape(filled.shape[0] // ROWS, ROWS, filled.shape[1] // 32, 2, 4, 4)
    pairs = (units[:, :, :, 0] | units[:, :, :, 1] << 4).transpose(0, 2, 3, 1, 4)
    return GemvWeights(
        "int4" if minimums_MG is None else "int4_min",
        num_rows,
        num_cols,
        group,
        _aligned(pairs),
        _interleaved(scales_MG),
        _NOTHING if minimums_MG is None else _interleaved(minimums_MG),
    )


def map_gguf(encoding: str, blocks: Bytes, num_rows: int, num_cols: int) -> GemvWeights:
    """The blocks of a GGUF tensor [num_rows, num_cols], read where they are: nothing is copied.

    Args:
        encoding: "q4_0", "q4_1", "q8_0" or "q4_k".
        blocks: 1-D uint8, contiguous, any address; may be read-only, such as a slice of a mapped file.

    Raises:
        InputError: sizes that do not fit.
        UnsupportedError: another encoding.
    """
    layout = _check_format(
        "encoding", encoding, {name: item for name, item in GEMV_FORMATS.items() if item.block_cols}
    )
    check_shape(num_rows, num_cols)
    check_whole_blocks(num_cols, layout)
    _check_array("blocks", blocks, np.dtype(np.uint8), 1)
    per_row = num_cols // layout.block_cols
    wanted = num_rows * per_row * layout.block_bytes
    if blocks.size != wanted:
        raise InputError(
            f"got {blocks.size} bytes",
            place="blocks",
            wanted=f"{wanted}: {num_rows} rows of {per_row} blocks of {layout.block_bytes}",
        )
    return GemvWeights(encoding, num_rows, num_cols, 0, blocks, _NOTHING, _NOTHING)


def quantize_activations(x_BK: Floats, arithmetic: Rounded = "fast") -> Activations:
    """Activations as integers in groups of 32, once for every matrix they are multiplied with.

    Each element moves by at most half of its group's max|x| / 127 ("fast") or / 16256 ("fine"). A group whose
    largest magnitude is below 2^-100 counts as zeros. A row that holds Inf or NaN makes every output of that
    row NaN.

    Raises:
        InputError: x is not a contiguous float32 matrix with columns.
    """
    batch, num_cols = _check_activations(x_BK)
    if arithmetic not in ("fine", "fast"):
        raise InputError(f"got {arithmetic!r}", place="arithmetic", wanted="'fine' or 'fast'")
    return Activations(batch, num_cols, _quantized(x_BK, arithmetic), arithmetic)


def gemv(
    weights: GemvWeights,
    x_BK: Floats | Activations,
    *,
    arithmetic: Arithmetic,
    out: Floats | None = None,
    threads: int = 1,
) -> Floats:
    """The products [B, M]; one pass over the weights serves all rows of x.

    "exact": float32 activations, products added in one order by fused multiply-adds; equal bit for bit on
    every instruction set that has them (`exact_is_fused`). "fine" and "fast": activations of 15 or 8 bits,
    equal bit for bit on every instruction set. None depends on `threads`, nor on which rows of W or x are
    computed together. Error bounds: native/gemv/README.md.

    Args:
        x_BK: float32, contiguous; or what `quantize_activations` gave for the same arithmetic.
        out: float32 [B, M], contiguous, writable, apart from the rest; made when None.
        threads: at most this many threads work; small matrices use fewer.

    Raises:
        InputError: an argument is not as described.
        UnsupportedError: no instruction set is in use.
    """
    if arithmetic not in ARITHMETICS:
        raise InputError(f"got {arithmetic!r}", place="arithmetic", wanted="'exact', 'fine' or 'fast'")
    if not isinstance(weights, GemvWeights):
        raise InputError(
            f"got {type(weights).__name__}",
            place="weights",
            wanted="what pack_int8, pack_int4 or map_gguf gives",
        )
    if isinstance(x_BK, Activations):
        if arithmetic != x_BK.arithmetic:
            raise InputError(
                f"got activations rounded for {x_BK.arithmetic!r}",
                place="x_BK",
                wanted=f"float32 activations, or such rounded for {arithmetic!r}",
            )
        batch, num_cols = x_BK.batch, x_BK.num_cols
    else:
        batch, num_cols = _check_activations(x_BK)
    if num_cols != weights.num_cols:
        raise InputError(
            f"x has {num_cols} columns, W {weights.num_rows} x {weights.num_cols}",
            place="x_BK",
            wanted=f"{weights.num_cols} columns",
        )
    check_threads(threads)
    sources = [
        weights.q,
        weights.scales,
        weights.minimums,
        x_BK.data if isinstance(x_BK, Activations) else x_BK,
    ]
    out = _checked_out(out, (batch, weights.num_rows), sources)
    stored = (
        GEMV_FORMATS[weights.format].index,
        weights.num_rows,
        weights.num_cols,
        weights.group,
        weights.q,
        weights.scales,
        weights.minimums,
    )
    if arithmetic == "exact":
        assert not isinstance(x_BK, Activations)
        native().gemv_exact(*stored, x_BK, out, threads)
    else:
        rounded = x_BK.data if isinstance(x_BK, Activations) else _quantized(x_BK, arithmetic)
        native().gemv_rounded(_index(arithmetic), *stored, rounded, out, threads)
    return out


def _index(arithmetic: Arithmetic) -> int:
    return ARITHMETICS.index(arithmetic)


def exact_is_fused() -> bool:
    """Whether "exact" fuses multiply and add here. Where it does not (v2), no other set has its bits.

    Who needs equal bits on several machines compares this among them.
    """
    return native().gemv_exact_is_fused()


def read_memory(data: Bytes, *, streams: int = 2, prefetch: int = 2048, threads: int = 1) -> int:
    """The exclusive or of all 64-bit words, read as `gemv` reads weights: for measuring what memory allows.

    Args:
        data: 1-D uint8, contiguous; only whole units of 2048 bytes are read.
        streams: 1, 2, 4 or 8 places read in turn.
        prefetch: bytes to ask ahead; 0 for none.
    """
    _check_array("data", data, np.dtype(np.uint8), 1)
    if streams not in (1, 2, 4, 8):
        raise InputError(f"got {streams!r}", place="streams", wanted="1, 2, 4 or 8")
    check_threads(threads)
    if isinstance(prefetch, bool) or not isinstance(prefetch, int) or not 0 <= prefetch <= 1 << 20:
        raise InputError(f"got {prefetch!r}", place="prefetch", wanted=f"an integer from 0 to {1 << 20}")
    return native().gemv_read(data[: data.size // READ_BYTES * READ_BYTES], streams, prefetch, threads)


def _quantized(x_BK: Floats, arithmetic: Arithmetic) -> Bytes:
    """What `Activations` holds for x that was checked."""
    module, index = native(), _index(arithmetic)
    data = np.empty(module.gemv_activation_bytes(index, x_BK.shape[1], x_BK.shape[0]), np.uint8)
    module.gemv_quantize(index, x_BK, data)
    return data


def stored_bytes(name: str, num_rows: int, num_cols: int, group: int) -> tuple[int, int, int]:
    """Of q, scales and minimums; as gemv_q_bytes and gemv_num_scales in native/gemv/gemv.h."""
    layout = GEMV_FORMATS[name]
    if layout.block_cols:
        return num_rows * (num_cols // layout.block_cols) * layout.block_bytes, 0, 0
    rows, groups = -(-num_rows // ROWS) * ROWS, -(-num_cols // (group or 32))
    cols = groups * (group or 32)
    if name == "int8":
        return rows * cols, 4 * rows * (groups if group else 1), 0
    halves = 2 * rows * groups
    return rows * cols // 2, halves, halves if name == "int4_min" else 0


def _filled(q: NDArray[_Int], unit: int, value: int) -> NDArray[_Int]:
    """Rows to a multiple of 16, columns to one of `unit`."""
    rows, cols = (-(-q.shape[0] // ROWS) * ROWS, -(-q.shape[1] // unit) * unit)
    filled = np.full((rows, cols), value, q.dtype)
    filled[: q.shape[0], : q.shape[1]] = q
    return filled


def _interleaved(scales_MG: NDArray[np.floating]) -> Bytes:
    """[M, G] -> [block, G, 16] as bytes, rows filled with zeros."""
    num_rows, groups = scales_MG.shape
    filled = np.zeros((-(-num_rows // ROWS) * ROWS, groups), scales_MG.dtype)
    filled[:num_rows] = scales_MG
    return _aligned(filled.reshape(-1, ROWS, groups).transpose(0, 2, 1))


def _aligned(array: NDArray[np.generic]) -> Bytes:
    """Its elements in order, as bytes from a multiple of 64 on: no line of the cache is loaded twice.

    numpy asks for huge pages for arrays of 4 MiB and more.
    """
    room = aligned_bytes(array.nbytes)
    room.view(array.dtype).reshape(array.shape)[...] = array
    return room


def _check_array(place: str, array: object, dtype: np.dtype[np.generic] | None, ndim: int) -> None:
    if not isinstance(array, np.ndarray):
        raise InputError(f"got {type(array).__name__}", place=place, wanted="a numpy array")
    right = np.issubdtype(array.dtype, np.integer) if dtype is None else array.dtype == dtype
    if not right or array.ndim != ndim:
        raise InputError(
            f"got {array.dtype} with {array.ndim} dims",
            place=place,
            wanted=f"{dtype or 'integers'} with {ndim} dim{'' if ndim == 1 else 's'}",
        )
    if not array.flags.c_contiguous or not array.flags.aligned:
        raise InputError(
            "got elements that are strided or split across addresses",
            place=place,
            wanted="a contiguous, aligned array",
            next_step="Pass a copy: np.ascontiguousarray(...)",
        )


def _check_matrix(place: str, q: object, dtype: np.dtype[np.generic] | None) -> tuple[int, int]:
    _check_array(place, q, dtype, 2)
    assert isinstance(q, np.ndarray)
    if not q.size:
        raise InputError(f"got shape {q.shape}", place=place, wanted="at least one row and one column")
    return q.shape[0], q.shape[1]


def _check_activations(x: object) -> tuple[int, int]:
    _check_array("x_BK", x, np.dtype(np.float32), 2)
    assert isinstance(x, np.ndarray)
    if not x.shape[1]:
        raise InputError(f"got shape {x.shape}", place="x_BK", wanted="at least one column")
    return x.shape[0], x.shape[1]


def _check_format(place: str, name: object, known: Mapping[str, Format]) -> Format:
    if not isinstance(name, str) or name not in known:
        raise UnsupportedError(
            f"no kernel for {name!r:.60}", place=place, wanted="one of " + ", ".join(known)
        )
    return known[name]


def _check_count(place: str, value: object, least: int = 1) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= MAX_ELEMENTS:
        raise InputError(
            f"got {value!r:.60}", place=place, wanted=f"an integer from {least} to {MAX_ELEMENTS}"
        )


def check_shape(num_rows: object, num_cols: object) -> None:
    """Refuse what is no shape of a matrix, or beyond counting."""
    _check_count("num_rows", num_rows)
    _check_count("num_cols", num_cols)
    assert isinstance(num_rows, int)
    assert isinstance(num_cols, int)
    if num_rows * num_cols > MAX_ELEMENTS:
        raise InputError(
            f"got {num_rows} x {num_cols}", place="num_rows", wanted=f"at most {MAX_ELEMENTS} elements"
        )


def check_whole_blocks(num_cols: int, layout: Format) -> None:
    """Refuse columns that end within a block."""
    if num_cols % layout.block_cols:
        raise InputError(
            f"got {num_cols}", place="num_cols", wanted=f"a multiple of {layout.block_cols}, the block"
        )


def _check_group(group: object, known: tuple[int | None, ...]) -> None:
    if isinstance(group, bool) or group not in known:
        raise InputError(f"got {group!r}", place="group", wanted="one of " + ", ".join(map(str, known)))


def _check_scales(place: str, scales: object, dtype: np.dtype[np.generic], shape: tuple[int, ...]) -> None:
    _check_array(place, scales, dtype, len(shape))
    assert isinstance(scales, np.ndarray)
    if scales.shape != shape:
        raise InputError(f"got shape {scales.shape}", place=place, wanted=f"{shape}")
    wrong = scales.size - int(np.isfinite(scales).sum())
    if wrong:
        raise InputError(f"{wrong} of {scales.size} are not finite", place=place, wanted="finite numbers")


def _checked_out(
    out: Floats | None, shape: tuple[int, int], sources: Sequence[NDArray[np.generic]]
) -> Floats:
    if out is None:
        return np.empty(shape, np.float32)
    _check_array("out", out, np.dtype(np.float32), 2)
    if out.shape != shape:
        raise InputError(f"got shape {out.shape}", place="out", wanted=f"{shape}")
    if not out.flags.writeable:
        raise InputError("got a read-only array", place="out", wanted="a writable one")
    if any(np.may_share_memory(out, source) for source in sources):
        raise InputError("overlaps weights or x in memory", place="out", wanted="memory of its own")
    return out
