"""oneDNN's C interface, as much of it as a convolution needs, through ctypes.

The library is the one in the wheel `onednn-cpu-gomp`; no header and no compiler is needed. Constants are
those of oneDNN 3.2 (oneapi/dnnl/dnnl_types.h). What a convolution made is destroyed by `release`. Knows
nothing about benchmarks' cases.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Mapping, Sequence
from ctypes import POINTER, Structure, byref, c_int, c_int64, c_size_t, c_uint, c_void_p
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Any, Final

from ._records import EngineError

__all__ = ["ANY", "NCHW", "NHWC", "OneDnn", "library_path"]

PACKAGE: Final = "onednn-cpu-gomp"
_LIBRARY: Final = "libdnnl.so.3"

# dnnl_format_tag_t: any, abcd (nchw and oihw), acdb (nhwc)
ANY: Final = 1
NCHW: Final = 5
NHWC: Final = 22
_CPU: Final = 1
_F32: Final = 3
_FORWARD_INFERENCE: Final = 96
_CONVOLUTION_DIRECT: Final = 1
_SCRATCHPAD_USER: Final = 1
_ARG_SRC, _ARG_DST, _ARG_WEIGHTS, _ARG_SCRATCHPAD = 1, 17, 33, 80
_QUERY_SRC, _QUERY_WEIGHTS, _QUERY_DST, _QUERY_SCRATCHPAD = 129, 131, 133, 136
_Dims = c_int64 * 12


class _Arg(Structure):
    _fields_ = (("arg", c_int), ("memory", c_void_p))


class _Version(Structure):
    _fields_ = (("major", c_int), ("minor", c_int), ("patch", c_int))


def library_path() -> Path | None:
    """The shared library of the installed wheel; None when it is not installed."""
    try:
        files = distribution(PACKAGE).files or []
    except PackageNotFoundError:
        return None
    found = [Path(str(file.locate())) for file in files if file.name == _LIBRARY]
    return found[0] if found and found[0].is_file() else None


class OneDnn:
    """One convolution: descriptors, memories and the primitive.

    Args:
        tag: the format of source and destination; weights are always in the format that oneDNN prefers.

    Raises:
        EngineError: the library cannot be loaded, or refuses a call.
    """

    def __init__(self, tag: int) -> None:
        path = library_path()
        if path is None:
            raise EngineError(f"{PACKAGE} is not installed")
        try:
            self._gomp = ctypes.CDLL("libgomp.so.1", mode=ctypes.RTLD_GLOBAL)
            self._lib: Any = ctypes.CDLL(str(path))
        except OSError as error:
            raise EngineError(f"oneDNN cannot be loaded: {error}") from None
        self._lib.dnnl_version.restype = POINTER(_Version)
        self._lib.dnnl_primitive_desc_query_md.restype = c_void_p
        self._lib.dnnl_memory_desc_get_size.restype = c_size_t
        self._tag = tag
        self._engine = self._made("engine_create", c_int(_CPU), c_size_t(0))
        self._stream = self._made("stream_create", self._engine, c_uint(1))
        self._owned: list[tuple[str, c_void_p]] = []
        self._memories: dict[int, c_void_p] = {}
        self._args: Any = None
        self._primitive = c_void_p()
        self.weight_bytes = self.scratchpad_bytes = 0

    @property
    def version(self) -> str:
        """As the library states it."""
        found = self._lib.dnnl_version().contents
        return f"{found.major}.{found.minor}.{found.patch}"

    def set_threads(self, threads: int) -> None:
        """Of OpenMP, for what is prepared and called from now on."""
        self._gomp.omp_set_num_threads(c_int(threads))

    def prepare(
        self,
        shapes: tuple[Sequence[int], Sequence[int], Sequence[int]],
        stride: int,
        source: int,
        weights: int,
    ) -> None:
        """Create the primitive, and bring source and weights (NCHW and OIHW f32 at addresses) to its formats.

        Args:
            shapes: of source, weights and destination.
        """
        self.release()
        x, w, y = shapes
        descs = [self._desc(x, self._tag), self._desc(w, ANY), self._desc(y, self._tag)]
        attr = self._made("primitive_attr_create")
        self._own("primitive_attr_destroy", attr)
        self._call("primitive_attr_set_scratchpad_mode", attr, c_int(_SCRATCHPAD_USER))
        two = _dims((stride, stride))
        zero = _dims((0, 0))
        desc = self._made(
            "convolution_forward_primitive_desc_create", self._engine, c_int(_FORWARD_INFERENCE),
            c_int(_CONVOLUTION_DIRECT), descs[0], descs[1], c_void_p(), descs[2],
            two, zero, zero, zero, attr,
        )  # fmt: skip
        self._own("primitive_desc_destroy", desc)
        self._primitive = self._made("primitive_create", desc)
        self._own("primitive_destroy", self._primitive)
        queries = {
            _ARG_SRC: _QUERY_SRC,
            _ARG_WEIGHTS: _QUERY_WEIGHTS,
            _ARG_DST: _QUERY_DST,
            _ARG_SCRATCHPAD: _QUERY_SCRATCHPAD,
        }
        for arg, query in queries.items():
            md = c_void_p(self._lib.dnnl_primitive_desc_query_md(desc, c_int(query), c_int(0)))
            self._memories[arg] = self._memory(md, -1)  # oneDNN allocates
            size = int(self._lib.dnnl_memory_desc_get_size(md))
            if arg == _ARG_WEIGHTS:
                self.weight_bytes = size
            elif arg == _ARG_SCRATCHPAD:
                self.scratchpad_bytes = size
        self._copy(self._memory(self._desc(x, NCHW), source), self._memories[_ARG_SRC])
        self._copy(self._memory(self._desc(w, NCHW), weights), self._memories[_ARG_WEIGHTS])
        self._args = _args(self._memories)

    def convolve(self) -> Callable[[], None]:
        """A call that executes the primitive once and waits for it."""
        execute, wait = self._lib.dnnl_primitive_execute, self._lib.dnnl_stream_wait
        primitive, stream, args = self._primitive, self._stream, self._args
        num = c_int(len(args))

        def call() -> None:
            if execute(primitive, stream, num, args) or wait(stream):
                raise EngineError("oneDNN refused to execute the convolution")

        return call

    def read(self, shape: Sequence[int], target: int) -> None:
        """Write the destination as NCHW f32 to an address."""
        self._copy(self._memories[_ARG_DST], self._memory(self._desc(shape, NCHW), target))

    def release(self) -> None:
        """Destroy what `prepare` and `read` made."""
        while self._owned:
            name, handle = self._owned.pop()
            getattr(self._lib, f"dnnl_{name}")(handle)
        self._memories.clear()
        self._args = None

    def _desc(self, shape: Sequence[int], tag: int) -> c_void_p:
        made = self._made(
            "memory_desc_create_with_tag", c_int(len(shape)), _dims(shape), c_int(_F32), c_int(tag)
        )
        self._own("memory_desc_destroy", made)
        return made

    def _memory(self, desc: c_void_p, address: int) -> c_void_p:
        made = self._made("memory_create", desc, self._engine, c_void_p(address))
        self._own("memory_destroy", made)
        return made

    def _copy(self, source: c_void_p, target: c_void_p) -> None:
        descs = []
        for memory in (source, target):
            desc = c_void_p()
            self._call("memory_get_memory_desc", memory, byref(desc))
            descs.append(desc)
        desc = self._made(
            "reorder_primitive_desc_create", descs[0], self._engine, descs[1], self._engine, c_void_p()
        )
        self._own("primitive_desc_destroy", desc)
        primitive = self._made("primitive_create", desc)
        self._own("primitive_destroy", primitive)
        args = _args({_ARG_SRC: source, _ARG_DST: target})
        self._call("primitive_execute", primitive, self._stream, c_int(len(args)), args)
        self._call("stream_wait", self._stream)

    def _made(self, name: str, *words: object) -> c_void_p:
        handle = c_void_p()
        self._call(name, byref(handle), *words)
        return handle

    def _own(self, destroy: str, handle: c_void_p) -> None:
        self._owned.append((destroy, handle))

    def _call(self, name: str, *words: object) -> None:
        status = getattr(self._lib, f"dnnl_{name}")(*words)
        if status:
            raise EngineError(f"dnnl_{name} gave status {status}")


def _dims(values: Sequence[int]) -> Any:
    return _Dims(*values)


def _args(memories: Mapping[int, c_void_p]) -> Any:
    return (_Arg * len(memories))(*(_Arg(arg, memory) for arg, memory in memories.items()))
