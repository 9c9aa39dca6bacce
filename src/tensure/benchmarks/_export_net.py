"""Write one network as an ONNX file, by PyTorch's own exporter, in a process that then ends.

    python -m tensure.benchmarks._export_net NAME FILE

So the processes of ONNX Runtime and OpenVINO never load torch. Weights are in the file; the exporter folds
batch norm into the convolutions before it, and the peers' own optimisers do the rest.
"""

from __future__ import annotations

import os
import subprocess
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from ._records import EngineError

__all__ = ["export_network", "onnx_file"]

_EXPORT_S: Final = 300.0


def onnx_file(network: str, folder: Path) -> Path:
    """The network's file in `folder`, exported now unless an engine did before.

    Raises:
        EngineError: the exporter failed; with its last line.
    """
    path = folder / f"{network}.onnx"
    if path.is_file():
        return path
    part = path.with_suffix(".part")
    command = [sys.executable, "-m", "tensure.benchmarks._export_net", network, str(part)]
    try:
        done = subprocess.run(command, capture_output=True, timeout=_EXPORT_S, check=False)
    except subprocess.TimeoutExpired:
        raise EngineError(f"exporting {network} took over {_EXPORT_S:g} s") from None
    if done.returncode:
        lines = done.stderr.decode("utf-8", "replace").strip().splitlines() or ["it wrote nothing"]
        raise EngineError(f"exporting {network} failed: {lines[-1][:300]}")
    os.replace(part, path)
    return path


def export_network(network: str, path: Path) -> None:
    """Export with torch.onnx, one file, the input named `x`."""
    import torch

    from ._net_engine import make_input
    from ._networks import build_network

    module = build_network(network)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter's own use of deprecated names
        torch.onnx.export(
            module,
            (torch.from_numpy(make_input()),),
            str(path),
            input_names=["x"],
            output_names=["out"],
            dynamo=True,
            external_data=False,
            verbose=False,
        )


def main(argv: Sequence[str]) -> None:
    """Export the network argv[0] to the file argv[1]."""
    export_network(argv[0], Path(argv[1]))


if __name__ == "__main__":
    main(sys.argv[1:])
