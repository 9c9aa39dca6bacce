"""vLLM as `decode-batch` asks it: a file of its own that runs in vLLM's environment and imports no Tensure.

    VENV/bin/python _peer_vllm.py MODEL_FOLDER CONTEXT MAX_SEQUENCES

Speaks the lines of `_child.py` (a request a line on stdin, an answer a line on stdout; what libraries print
goes to stderr). bf16, eager, its own defaults otherwise but for the prefix cache, which is off so that
repeated prompts are computed. The number of threads is that of the process (`OMP_NUM_THREADS`): vLLM on a
CPU does not let it change later.
"""

from __future__ import annotations

import base64
import json
import os
import sys
import time
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import IO, Any


class VllmEngine:
    """A model folder in vLLM's engine, stepped by hand in this process."""

    def __init__(self, folder: str, context: int, max_sequences: int) -> None:
        _spare_video_reader(Path(folder))
        self._api: Any = import_module("vllm")
        llm = self._api.LLM(
            model=folder,
            skip_tokenizer_init=True,
            enforce_eager=True,
            dtype="bfloat16",
            max_model_len=context,
            max_num_seqs=max_sequences,
            max_logprobs=-1,
            enable_prefix_caching=False,
            disable_log_stats=True,
        )
        self._engine: Any = llm.llm_engine
        self._vocab = int(self._engine.model_config.get_vocab_size())
        self._bytes = Path(folder, "model.safetensors").stat().st_size
        self._next_id = 0

    def check(self, case: Any) -> list[str]:
        """Log-probabilities after each prompt and its forced token: logits but for a constant each."""
        params = case["params"]
        finished = self._finish(self._submit(params["prompts"], 2, logprobs=-1, forced=params["forced"]))
        rows = [row for output in finished for row in output.outputs[0].logprobs]
        return [self._packed(row) for row in rows]

    def run(self, case: Any) -> dict[str, float]:
        """Time the tokens after each sequence's first."""
        params = case["params"]
        ids = self._submit(params["prompts"], params["tokens"] + 1)
        made = dict.fromkeys(ids, 0)
        while not all(made.values()):
            for output in self._engine.step():
                made[output.request_id] = len(output.outputs[0].token_ids)
        before = sum(made.values())
        begin, cpu = time.perf_counter(), time.process_time()
        while self._engine.has_unfinished_requests():
            for output in self._engine.step():
                made[output.request_id] = len(output.outputs[0].token_ids)
        wall_s, cpu_s = time.perf_counter() - begin, time.process_time() - cpu
        timed, wanted = sum(made.values()) - before, params["tokens"] * len(ids)
        if timed != wanted:
            raise RuntimeError(f"{timed} tokens were timed, not {wanted}")
        return {"wall_s": wall_s, "cpu_s": cpu_s}

    def facts(self) -> dict[str, Any]:
        """Size, version, peak memory (VmHWM)."""
        with open("/proc/self/status", encoding="ascii", errors="replace") as status:
            peak = next(int(line.split()[1]) * 1024 for line in status if line.startswith("VmHWM:"))
        return {
            "weight_bytes": self._bytes,
            "computes": "bf16",
            "version": f"vllm {self._api.__version__}",
            "peak_rss_bytes": peak,
        }

    def _submit(
        self,
        prompts: Sequence[Sequence[int]],
        tokens: int,
        logprobs: int | None = None,
        forced: Sequence[int] | None = None,
    ) -> list[str]:
        ids: list[str] = []
        for i, prompt in enumerate(prompts):
            params = self._api.SamplingParams(
                temperature=0.0,
                max_tokens=tokens,
                ignore_eos=True,
                detokenize=False,
                logprobs=logprobs,
                allowed_token_ids=None if forced is None else [forced[i]],
            )
            ids.append(str(self._next_id))
            self._next_id += 1
            self._engine.add_request(ids[-1], {"prompt_token_ids": list(prompt)}, params)
        return ids

    def _finish(self, ids: Sequence[str]) -> list[Any]:
        done: dict[str, Any] = {}
        while self._engine.has_unfinished_requests():
            done.update({output.request_id: output for output in self._engine.step() if output.finished})
        return [done[name] for name in ids]

    def _packed(self, row: Any) -> str:
        numpy = import_module("numpy")
        values = numpy.full(self._vocab, numpy.nan, "<f4")
        for token, found in row.items():
            values[token] = found.logprob
        return base64.b64encode(values.tobytes()).decode("ascii")


def _spare_video_reader(folder: Path) -> None:
    """VLLM takes a missing torchcodec well, and one that does not fit its torch badly: make it missing.

    It also starts processes that import everything again, hence the path for them.
    """
    try:
        import_module("torchcodec")
    except ImportError:
        return
    except OSError:
        shadow = folder / "without"
        shadow.mkdir(exist_ok=True)
        (shadow / "torchcodec.py").write_text("raise ImportError('not loaded here')\n", encoding="ascii")
        paths = [str(shadow), *filter(None, [os.environ.get("PYTHONPATH")])]
        os.environ["PYTHONPATH"] = os.pathsep.join(paths)
        sys.path.insert(0, str(shadow))
        for name in [name for name in sys.modules if name.split(".")[0] == "torchcodec"]:
            del sys.modules[name]


def serve(folder: str, context: str, max_sequences: str, requests: IO[bytes], answers: IO[bytes]) -> None:
    """Answer line by line until `close` or the end of the requests."""

    def say(message: Any) -> None:
        answers.write(json.dumps(message).encode() + b"\n")
        answers.flush()

    engine = VllmEngine(folder, int(context), int(max_sequences))
    say({"ok": "ready"})
    for line in requests:
        message = json.loads(line)
        if message["do"] == "close":
            return
        methods: dict[str, Any] = {"check": engine.check, "run": engine.run, "facts": engine.facts}
        method = methods[message["do"]]
        say({"ok": method() if message["case"] is None else method(message["case"])})


def main() -> None:
    """Serve over this process's own stdin and stdout, out of the reach of what libraries print."""
    with os.fdopen(os.dup(1), "wb") as answers, os.fdopen(os.dup(0), "rb") as requests:
        os.dup2(2, 1)
        serve(sys.argv[1], sys.argv[2], sys.argv[3], requests, answers)


if __name__ == "__main__":
    main()
