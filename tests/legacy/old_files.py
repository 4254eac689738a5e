"""The old files: which there are, what is asked of them, and how models made of them are compared."""

import os
from pathlib import Path

import keras
import numpy as np

from kpipe.legacy.load import _places
from kpipe.legacy.reading import Request
from kpipe.legacy.source import look_at
from tests.legacy import old_layers

ROOT = Path(__file__).resolve().parents[2]
DATA = Path(os.environ.get("KPIPE_DATA", ROOT.parent / "shared" / "data"))
REAL = DATA / "sww_streaming_wakeword_keras2.h5"
OWN = {"squash": old_layers.squash, "Shift": old_layers.Shift, "thrice": old_layers.double}
LAMBDAS = {"distance": old_layers.distance, "masked": old_layers.double}
RESIDUAL = {"ResidualWrapper": "tf_keras.src.layers.rnn.cell_wrappers:ResidualWrapper"}
SAMPLES = (np.full((1, 3), 7.0, np.float32),)
PLAIN = (
    "attention.keras",
    "called_at_inference.h5",
    "convolutions.h5",
    "dense.keras",
    "features.h5",
    "nested.h5",
    "operations.h5",
    "padded.keras",
    "recurrent.h5",
    "registered",
    "registered.h5",
    "siamese",
    "stateful.h5",
    "text.keras",
)
WRAPPED = ("clustered.h5", "clustered_sparse.h5", "pruned.h5", "pruned.keras", "quantized.h5", "quantized_graph.keras")
REFUSED = (
    "called_in_training.h5",
    "pruned_after_masks.keras",
    "subclassed",
    "unknown_operation.h5",
    "unknown_to_keras_3.h5",
)
ASKED = {
    **{name: {} for name in (*PLAIN, *WRAPPED, "clustered_midway.h5", "half_precision.h5")},
    **{name: {} for name in REFUSED},
    **{name: {"given": OWN} for name in ("own_classes", "own_classes.h5", "own_classes.keras")},
    **({str(REAL): {}} if REAL.is_file() else {}),
    "distance.h5": {"given": LAMBDAS},
    "distance.h5, code run": {"safe_mode": False},
    "masked_lambda": {"given": LAMBDAS},
    "masked_lambda.h5": {"given": LAMBDAS},
    "own_classes, no function": {"given": {**OWN, "squash": None}},
    "own_classes.h5, code run": {"given": {**OWN, "thrice": None}, "safe_mode": False},
    "own_classes.h5, samples": {"given": OWN, "samples": SAMPLES},
    "own_classes.h5, code refused": {"given": {**OWN, "thrice": None}},
    "own_classes.h5, too many samples": {"given": OWN, "samples": SAMPLES * 2},
    "own_classes.h5, no class": {"given": {**OWN, "Shift": None}},
    "own_classes.h5, no module": {"given": OWN, "originals": {"Shift": "no.such.module:Shift"}},
    "own_classes.keras, no class": {"given": {**OWN, "Shift": None}},
    "residual.h5": {"originals": RESIDUAL},
}
"""What is asked of tf_keras, all in one go: the name of a file, and a remark where a file is asked for again."""


def request_of(path, given=None, originals=None, **asked):
    given = {name: value for name, value in (given or {}).items() if value is not None}
    file = look_at(path)
    return Request(file, _places(file, given, originals or {}), **asked)


def truth(old, name):
    """Give inputs and outputs that tf_keras left beside a file."""
    with np.load(old / f"{Path(name).stem}.npz") as arrays:
        return (
            [arrays[key] for key in arrays if key.startswith("input")],
            [arrays[key] for key in arrays if key.startswith("output")],
        )


def answers(model, inputs):
    """Run a model on inputs in sorted order; give its outputs in sorted order."""
    structure = model._inputs_struct if not isinstance(model, keras.Sequential) else model.inputs[0]
    if isinstance(structure, dict):
        values = dict(zip(sorted(structure), inputs, strict=True))
    else:
        values = inputs if isinstance(structure, (list, tuple)) else inputs[0]
    outputs = model(keras.tree.map_structure(keras.ops.convert_to_tensor, values), training=False)
    if isinstance(outputs, dict):
        outputs = [outputs[key] for key in sorted(outputs)]
    return [np.asarray(output) for output in keras.tree.flatten(outputs)]


def assert_equal(got, expected, tolerance=1e-5):
    assert len(got) == len(expected) > 0
    for one, other in zip(got, expected, strict=True):
        assert one.shape == other.shape
        if other.dtype.kind == "S":
            np.testing.assert_array_equal(one.astype(bytes), other)
            continue
        np.testing.assert_allclose(one, other, rtol=0, atol=tolerance * max(1.0, np.abs(other).max()))
