"""Keras models from their own description: one table of layers for saved files and for live objects.

A model arrives as the tree of its config (`_document.py` has checked every class in it) with a source of
variables. `_graph.py` walks Sequential and Functional models, `_table.py` finds each layer's rule, the
rules write listed ops through `_build.py`. Nothing here imports Keras, torch or anything a config names.
"""

from . import _activations, _dense, _sequence, _spatial
from ._build import Builder, Tensor
from ._document import check_document, class_of
from ._graph import Socket, run_model, sockets
from ._table import ASK_EXPORT, LAYERS, Variables, make_layer, snake

__all__ = [
    "ASK_EXPORT",
    "LAYERS",
    "Builder",
    "Socket",
    "Tensor",
    "Variables",
    "check_document",
    "class_of",
    "make_layer",
    "run_model",
    "snake",
    "sockets",
]

RULES = (_activations, _dense, _sequence, _spatial)
"""The modules that register the rules."""
