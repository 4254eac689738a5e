"""Count what a model costs: parameters, nonzeros, multiply-accumulates, bytes; per layer and in total."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import keras
import numpy as np

from kpipe.errors import KpipeError, SurgeryError
from kpipe.fake_quant import FakeQuant, bake, is_quantized
from kpipe.graph import trace
from kpipe.layers import KERNEL_ROLES, Weight, located, own_variables, weights, weights_within


@dataclass(frozen=True)
class LayerMeasure:
    """Hold the counts of one layer, or of an operation that multiplies tensors with one another.

    Args:
        layer: Its path, with the names of the nested models around it.
        kind: Its class.
        params: Number of weights, those that are not trained (BatchNorm's statistics) included.
        nonzeros: How many of them are not zero.
        kernel_params: Number of weights in kernels, the ones that pruning and MACs are about.
        kernel_nonzeros: How many of those are not zero.
        macs: Multiply-accumulates for one sample: of its kernels, and of products such as attention scores; None when
            not known.
        bytes: In memory.
        channels: Output channels of its kernel; None for a layer without one.
    """

    layer: str
    kind: str
    params: int
    nonzeros: int
    kernel_params: int
    kernel_nonzeros: int
    macs: int | None
    bytes: int
    channels: int | None

    @property
    def sparsity(self) -> float:
        """Fraction of zeros in the layer's kernels, in [0, 1]."""
        return _sparsity([self])


def _sparsity(rows: Sequence[LayerMeasure]) -> float:
    total = sum(row.kernel_params for row in rows)
    return 1.0 - sum(row.kernel_nonzeros for row in rows) / total if total else 0.0


@dataclass(frozen=True)
class Measurement:
    """Hold the counts of a model, layer by layer; printed, it is a table."""

    name: str
    rows: tuple[LayerMeasure, ...]

    @property
    def params(self) -> int:
        """Number of weights."""
        return sum(row.params for row in self.rows)

    @property
    def nonzeros(self) -> int:
        """Number of weights that are not zero."""
        return sum(row.nonzeros for row in self.rows)

    @property
    def macs(self) -> int | None:
        """Multiply-accumulates for one sample; None when those of a layer are not known."""
        return None if any(row.macs is None for row in self.rows) else sum(row.macs or 0 for row in self.rows)

    @property
    def bytes(self) -> int:
        """Bytes of all weights in memory."""
        return sum(row.bytes for row in self.rows)

    @property
    def sparsity(self) -> float:
        """Fraction of zeros in the kernels, in [0, 1]; biases and norms do not count."""
        return _sparsity(self.rows)

    def to_dict(self) -> dict[str, Any]:
        """Give the counts as plain data."""
        totals = {"params": self.params, "nonzeros": self.nonzeros, "macs": self.macs, "bytes": self.bytes}
        layers = [asdict(row) | {"sparsity": row.sparsity} for row in self.rows]
        return totals | {"sparsity": self.sparsity, "layers": layers}

    def __str__(self) -> str:
        head = ("layer", "kind", "channels", "params", "nonzeros", "sparsity", "MACs", "bytes")
        total = LayerMeasure("total", "", self.params, self.nonzeros, 0, 0, self.macs, self.bytes, None)
        lines = [head] + [_cells(row, row.sparsity) for row in self.rows] + [_cells(total, self.sparsity)]
        widths = [max(len(line[i]) for line in lines) for i in range(len(head))]
        form = "  ".join(f"{{:{'<' if i < 2 else '>'}{width}}}" for i, width in enumerate(widths))
        text = [form.format(*line) for line in lines]
        return "\n".join(line.rstrip() for line in [text[0], *text[1:-1], "-" * len(text[0]), text[-1]])


def _cells(row: LayerMeasure, sparsity: float) -> tuple[str, ...]:
    macs = "?" if row.macs is None else f"{row.macs:,}"
    channels = "" if row.channels is None else str(row.channels)
    return (
        row.layer,
        row.kind,
        channels,
        f"{row.params:,}",
        f"{row.nonzeros:,}",
        f"{sparsity:.1%}",
        macs,
        f"{row.bytes:,}",
    )


def measure(model: keras.Model) -> Measurement:
    """Count parameters, nonzeros, multiply-accumulates and bytes of a model.

    Args:
        model: Any built Keras model. MACs are counted for one sample, of kernels and of products of tensors, from the
            rules of the layers and operations; they are None for a layer without a rule, an open input size, or a
            subclassed model. A quantized model is counted as it will be written: its kernels rounded, without masks and
            ranges.

    Returns:
        The counts; print them for a table.

    Raises:
        KpipeError: When it is not a Keras model, or not built.

    Example:
        >>> import keras
        >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(6), keras.layers.Dense(2)])
        >>> counts = measure(model)
        >>> counts.params, counts.macs, counts.bytes
        (44, 36, 176)
    """
    if not isinstance(model, keras.Model):
        raise KpipeError(f"Expected a Keras model. Received: {type(model).__module__}.{type(model).__name__}.")
    if not model.built:
        raise KpipeError(f"Model {model.name!r} is not built. Call it once on data, or add a keras.Input.")
    if is_quantized(model):
        rows = [row for row in _rows(bake(model)) if row.kind != FakeQuant.__name__]
    else:
        rows = _rows(model)
    return Measurement(model.name, tuple(rows))


def _rows(model: keras.Model) -> list[LayerMeasure]:
    try:
        traced = trace(model, unknown="freeze")
    except SurgeryError:
        return _rows_inside(model)
    rows = []
    for one in traced.layers:
        macs, held = traced.macs_of(one), [weight.variable for weight in one.weights]
        if held or macs != 0:
            rows.append(_row(one.path, one.layer, macs, held, weights_within(one.layer) if held else []))
    return rows


def _rows_inside(model: keras.Model) -> list[LayerMeasure]:
    """Count what each layer holds itself, each variable once: of a graph that cannot be read."""
    rows, roles, seen = [], {id(weight.variable): weight for weight in weights_within(model)}, set()
    for path, layer in located(model).items():
        own = [variable for variable in own_variables(layer) if id(variable) not in seen]
        seen.update(id(variable) for variable in own)
        known = [roles[id(variable)] for variable in own if id(variable) in roles]
        multiplied = any(weight.role in KERNEL_ROLES for weight in known)
        unknown = any(len(variable.shape) > 1 for variable in own if id(variable) not in roles)
        if own:
            rows.append(_row(path or layer.name, layer, None if multiplied or unknown else 0, own, known))
    return rows


def _row(
    path: str,
    layer: Any,
    macs: int | None,
    variables: Sequence[keras.Variable],
    known: Sequence[Weight],
) -> LayerMeasure:
    values = [np.asarray(variable) for variable in variables]
    kernels = [np.asarray(weight.variable) for weight in known if weight.role in KERNEL_ROLES]
    return LayerMeasure(
        layer=path,
        kind=type(layer).__name__,
        params=sum(value.size for value in values),
        nonzeros=sum(int(np.count_nonzero(value)) for value in values),
        kernel_params=sum(value.size for value in kernels),
        kernel_nonzeros=sum(int(np.count_nonzero(value)) for value in kernels),
        macs=macs,
        bytes=sum(value.nbytes for value in values),
        channels=_channels(layer) if variables else None,
    )


def _channels(layer: keras.Layer) -> int | None:
    """Give the output channels of a layer's own last kernel; of a recurrent cell, the size of its state."""
    turned = {weight.role: weight.layout.turned_shape(weight.variable.shape) for weight in weights(layer)}
    if "recurrent_kernel" in turned:
        return turned["recurrent_kernel"][-2]
    return turned["kernel"][-1] if "kernel" in turned else None
