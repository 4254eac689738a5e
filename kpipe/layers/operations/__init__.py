"""Rules of the operations of `keras.ops` inside a graph; what has none freezes the channels that touch it.

`ops.relu(x)`, `x + 1.0` and `x[..., :8]` on a symbolic tensor are nodes of the graph like layers are. Their classes
bear the names of layers, so they are told apart by class and not by name.
"""

from kpipe.layers.operations import (
    elementwise,
    images,
    integer,  # it adds to what the others have registered
    layout,
    parts,
    products,
    reductions,
)

__all__ = ["elementwise", "images", "integer", "layout", "parts", "products", "reductions"]
