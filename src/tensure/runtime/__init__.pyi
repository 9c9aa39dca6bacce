from ._classification import Classification, Label
from ._engine import BetweenSteps, Engine, EngineStats, StepHook
from ._files import load_inputs, save_outputs, save_run
from ._generation import Generation, Message, Timing
from ._image import ImageRecipe, load_image, prepare_image
from ._inputs import Inputs, Invocation, check_inputs, check_types
from ._machine import host_fleet, read_bandwidth
from ._open_engine import MODE_ARITHMETIC, MODES, Mode
from ._paged_decoder import PagedDecoder
from ._receipt_book import SignedReceipt
from ._segment_execution import KERNEL_ACTIVATIONS, SegmentExecution
from ._session import Session
from ._step import DecoderCore, StepRows
from ._stream import EndReason, Stream, Watch
from ._tensors import Array, to_array, to_tensor
from ._text_side import TextSide, read_object

__all__ = [
    "KERNEL_ACTIVATIONS",
    "MODES",
    "MODE_ARITHMETIC",
    "Array",
    "BetweenSteps",
    "Classification",
    "DecoderCore",
    "EndReason",
    "Engine",
    "EngineStats",
    "Generation",
    "ImageRecipe",
    "Inputs",
    "Invocation",
    "Label",
    "Message",
    "Mode",
    "PagedDecoder",
    "SegmentExecution",
    "Session",
    "SignedReceipt",
    "StepHook",
    "StepRows",
    "Stream",
    "TextSide",
    "Timing",
    "Watch",
    "check_inputs",
    "check_types",
    "host_fleet",
    "load_image",
    "load_inputs",
    "prepare_image",
    "read_bandwidth",
    "read_object",
    "save_outputs",
    "save_run",
    "to_array",
    "to_tensor",
]
