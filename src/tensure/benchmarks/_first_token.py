"""A process from its start to its answer, as `decode-start` watches it: a script that prints a line of JSON.

    python -P _first_token.py ENGINE MODEL.gguf THREADS '{"prompt": [...], "tokens": 64, "logits": false}'

ENGINE is exact, fast or llama.cpp. The line has the clock (monotonic, the same for all processes) and the
processor time when its modules were imported, the model was loaded, the first token and the last were made;
and the memory. It imports what its engine needs and nothing else of ours: that is what a user waits for.
"""

from __future__ import annotations

import base64
import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

Load: TypeAlias = "Callable[[str, int], Any]"
Marks: TypeAlias = "dict[str, tuple[float, float]]"


def import_tensure(mode: str) -> Load:
    """The modules of our engine; then what loads a model: repack, and make the cache of a whole context."""
    import numpy as np

    from tensure.kernels import PAGE_TOKENS, StepRows
    from tensure.program import read_decoder
    from tensure.program.from_gguf import from_gguf
    from tensure.runtime import MODE_ARITHMETIC, PagedDecoder

    class Loaded:
        def __init__(self, path: str, threads: int) -> None:
            model = from_gguf(path)
            config = read_decoder(model.program)
            if config is None:
                raise ValueError(f"{path} is no decoder that our kernels run")
            arithmetic = MODE_ARITHMETIC["exact" if mode == "exact" else "fast"]
            self.weight_bytes = sum(model.weights[name].data.nbytes for name in model.weights)
            self._decoder = PagedDecoder(config, model.weights, threads=threads, arithmetic=arithmetic)
            self._table = np.arange(self._decoder.num_pages, dtype=np.int32)[None]
            self._position = 0

        def read(self, tokens: Sequence[int]) -> Any:
            """The logits after the last of these tokens."""
            num = len(tokens)
            at = np.arange(self._position, self._position + num, dtype=np.int32)
            self._position += num
            row_tokens, slots = np.array(tokens, np.int32), np.zeros(num, np.int32)
            return self._decoder.step(
                StepRows(row_tokens, at, slots, self._table, np.array([num - 1], np.int32))
            )[0]

        def cache_bytes(self) -> int:
            """Of the pages that the positions so far lie in; the others are never touched."""
            return int(-(-self._position // PAGE_TOKENS) * self._decoder.cache_pages.shape[1])

    return Loaded


def import_llama_cpp(_: str) -> Load:
    """llama-cpp-python; then what loads a model, with a context of the same length."""
    sys.path += [folder for folder in os.environ.get("TENSURE_BENCH_PATH", "").split(os.pathsep) if folder]
    import llama_cpp  # type: ignore[import-not-found,unused-ignore]
    import numpy as np

    class Loaded:
        def __init__(self, path: str, threads: int) -> None:
            self._llama = llama_cpp.Llama(
                model_path=path, n_ctx=2048, n_threads=threads, n_threads_batch=threads, verbose=False
            )
            self.weight_bytes = int(llama_cpp.llama_model_size(self._llama.model))

        def read(self, tokens: Sequence[int]) -> Any:
            self._llama.eval(list(tokens))
            pointer = llama_cpp.llama_get_logits_ith(self._llama.ctx, -1)
            return np.ctypeslib.as_array(pointer, (self._llama.n_vocab(),))

        def cache_bytes(self) -> None:
            return None

    return Loaded


def answer(load: Load, path: str, threads: int, asked: dict[str, Any], marks: Marks) -> dict[str, Any]:
    """Load, read the prompt, make the tokens; `marks` gets the times."""
    model = load(path, threads)
    _mark(marks, "loaded")
    logits = model.read(asked["prompt"])
    token = int(logits.argmax())
    _mark(marks, "first")
    first = logits.copy()
    for _ in range(asked["tokens"]):
        token = int(model.read([token]).argmax())
    _mark(marks, "last")
    found = {"marks": marks, "weight_bytes": model.weight_bytes, "cache_bytes": model.cache_bytes()}
    if asked["logits"]:
        found["logits"] = base64.b64encode(first.astype("<f4").tobytes()).decode("ascii")
    return {**found, "peak_rss_bytes": _peak()}


def _mark(marks: Marks, name: str) -> None:
    marks[name] = (time.monotonic(), time.process_time())


def _peak() -> int:
    """VmHWM: everything that was ever in memory at once, libraries and mapped files included."""
    with open("/proc/self/status", encoding="ascii", errors="replace") as status:
        return next(int(line.split()[1]) * 1024 for line in status if line.startswith("VmHWM:"))


def main(name: str, path: str, threads: str, asked: str) -> None:
    """Print the line."""
    begin = import_llama_cpp if name == "llama.cpp" else import_tensure
    load = begin(name)
    marks: Marks = {}
    _mark(marks, "imported")
    print(json.dumps(answer(load, path, int(threads), json.loads(asked), marks)), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
