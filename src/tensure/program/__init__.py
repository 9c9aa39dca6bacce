"""What must be computed: expressions, ops, blocks, types, reference semantics, the walk that expands them.

No torch and no kernels. Readers of files and frameworks are leaf modules imported by name
(`tensure.program.from_gguf`, `tensure.program.from_torch`, ...), never from here.
"""

from ._digest import tensor_digest
from ._dtypes import DTYPES, dtype_name, item_bytes, numpy_dtype
from ._evaluate import (
    Evaluation,
    bind_entry,
    evaluate_program,
    infer_program,
    leaves,
    state_pairs,
    type_of,
)
from ._expr import Env, Expr, Int, axis, evaluate, expr
from ._model import Model
from ._ops import OpDef, evaluate_op, infer_op, listed, lookup
from ._records import (
    Arg,
    Attr,
    Attrs,
    Block,
    Body,
    Call,
    Cat,
    Each,
    Entry,
    For,
    Item,
    Name,
    Op,
    Program,
    Ref,
    State,
    TensorType,
    Value,
    name,
    op,
    ref,
)
from ._text import digest, format_program, parse_program
from ._validate import corner_params, validate_program
from ._walk import COLLECTIVES, COMMUNICATION, Machine, expand, ground, walk
from ._weights import ENCODINGS, Encoding, StoredTensor, Weights, encoded_nbytes

__all__ = [
    "COLLECTIVES",
    "COMMUNICATION",
    "DTYPES",
    "ENCODINGS",
    "Arg",
    "Attr",
    "Attrs",
    "Block",
    "Body",
    "Call",
    "Cat",
    "Each",
    "Encoding",
    "Entry",
    "Env",
    "Evaluation",
    "Expr",
    "For",
    "Int",
    "Item",
    "Machine",
    "Model",
    "Name",
    "Op",
    "OpDef",
    "Program",
    "Ref",
    "State",
    "StoredTensor",
    "TensorType",
    "Value",
    "Weights",
    "axis",
    "bind_entry",
    "corner_params",
    "digest",
    "dtype_name",
    "encoded_nbytes",
    "evaluate",
    "evaluate_op",
    "evaluate_program",
    "expand",
    "expr",
    "format_program",
    "ground",
    "infer_op",
    "infer_program",
    "item_bytes",
    "leaves",
    "listed",
    "lookup",
    "name",
    "numpy_dtype",
    "op",
    "parse_program",
    "ref",
    "state_pairs",
    "tensor_digest",
    "type_of",
    "validate_program",
    "walk",
]
