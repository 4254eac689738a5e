"""A file compared with the Keras model it was written from, in its real runtime."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np

from kpipe.checks import broken_in
from kpipe.copies import float32_policy, in_float32
from kpipe.data import samples
from kpipe.errors import ExportError
from kpipe.export.engines import engines_of
from kpipe.export.file import Agreement, File
from kpipe.export.formats import CONVERTER, OWN, file_at, format_of
from kpipe.export.metadata import read_metadata
from kpipe.export.precision import rounded_for
from kpipe.export.runtime import Runtime
from kpipe.export.signature import check_exportable
from kpipe.export.steps import squashing_of, steps_apart
from kpipe.export.tolerance import check
from kpipe.export.trial import assure
from kpipe.fake_quant import SCHEMES, FakeQuant, activation_bits, is_quantized

BATCH_TOLERANCE = 1e-2
"""Greatest relative difference of answers to the same samples in batches of other sizes: sums in another order."""
DATA_SAMPLES, RANDOM_SAMPLES = 256, 64
LEAST_SIGNAL = 0.1
"""The least variance that an entry of an output counts with, of the greatest beside it: all lie on one grid, and what
hardly varies is not refused for a fraction of its step."""


def verify(file: File | str | Path, model: keras.Model, data: Any = None, signature: str | None = None) -> Agreement:
    """Run a file in its runtime and compare its outputs with the Keras model's.

    Files that compute in float must agree within a relative error of 1e-4 (float16: 1e-2), or 0.02 · √n where n of
    their operations round what comes in (LiteRT's kernels of whole weights, "int8_dynamic"). A float model is compared
    with its weights rounded as those of the file are. Outputs of files in whole numbers must have at least 97 % of the
    values within two steps of their grid and none beyond six (w4a8: 90 % and eight), or of the grid of what goes into
    the softmax, sigmoid or tanh that makes them, whichever are fewer; on the caller's own data, the argmax of outputs
    with at least two entries must agree on 99 % of the rows. On random samples the argmax is only reported: noise lies
    on the borders between classes.

    A file in whole numbers that a converter has rounded (`export` by method="converter") is held against the float
    model, for none computes as it does. At each entry of an output's last axis, the mean square of the error must lie
    20 dB below the variance over the samples (counted as at least a tenth of the greatest beside it), an error of a
    tenth of the scatter; and the argmax must agree on 90 % of the rows. So is a file that does not say who rounded it.

    Files compute in float32 what a model computes in half precision: such a model is held against them as
    `kpipe.to_float32` copies it.

    Args:
        file: A file, or its path.
        model: The Keras model that it was written from; for a file in whole numbers that kpipe rounded the quantized
            one, for one that a converter rounded, or that is from elsewhere, the float one.
        data: Samples, anything that `model.fit` takes, of which at most 256 are used. None: 64 seeded random ones; a
            file in whole numbers held against a float model needs samples like those of its calibration.
        signature: Which of its signatures the model is, for a file of several.

    Returns:
        How well they agree.

    Raises:
        ExportError: When the file cannot be loaded, has other inputs or outputs than the model, does not agree, data is
            needed and not given, a signature is not settled, or a model is given that the file was not rounded from: a
            float one for whole numbers by kpipe, a quantized one for those by a converter.
        KpipeError: When the data is empty, of another shape, or not finite.

    Example:
        >>> import tempfile
        >>> from kpipe.export.write import export
        >>> model = keras.Sequential([keras.Input((4,), name="x"), keras.layers.Dense(2, name="y")])
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     file = export(model, Path(folder) / "small.onnx")
        ...     agreement = verify(file, model, data=np.eye(4, dtype="float32"))
        >>> agreement.samples, agreement.source, agreement.max_relative_error < 1e-5
        (4, 'data', True)
    """
    path = file_at(file)
    name, form = format_of(path)
    check_exportable(model)
    assure(path, engines_of(name)[0])
    found = form.inspect(path, signature)
    model = in_float32(model, "The file", told=False)
    if found.precision in SCHEMES and SCHEMES[found.precision].activations is None:
        with float32_policy():
            model = rounded_for(model, found.precision)
    twin = activation_bits(found.precision) is None or is_quantized(model)
    rounded_by = read_metadata(path).get("method")
    if rounded_by == CONVERTER and is_quantized(model):
        raise ExportError(
            f"{path} is {found.precision} as TensorFlow's converter rounded it, and {model.name!r} is a quantized "
            "model, which computes otherwise. Give the float model that the file was written from, and data=..."
        )
    if not twin and rounded_by == OWN:
        raise ExportError(
            f"{path} is {found.precision} as kpipe rounded it, and {model.name!r} is a float model. Give the quantized "
            "model that the file was written from: it computes as the file does, and is held against it more closely."
        )
    if not twin and data is None:
        raise ExportError(
            f"{path} is {found.precision}, and {model.name!r} is a float model: it takes data to compare them on, like "
            "what the ranges of the file were found on. Give data=..., or the quantized model that the file was "
            "written from."
        )
    with form.runtime(path, signature=signature) as runtime:
        agreement = compare(runtime, model, data, twin)
    check(agreement, found.precision, str(path), found.hybrids)
    return agreement


def compare(runtime: Runtime, model: keras.Model, data: Any = None, twin: bool = True) -> Agreement:
    """Measure how a loaded file agrees with a model on samples of `data`, or on random ones; judge nothing.

    Args:
        runtime: The file.
        model: The model.
        data: Samples; None for random ones.
        twin: Whether the model computes as the file does: both in float, or both in the same whole numbers.

    Raises:
        ExportError: When weights of the model are not finite, and so its answers; when shapes differ, or one sample
            alone has no scatter.
    """
    inputs = random_inputs(model) if data is None else samples(data, model, limit=DATA_SAMPLES, what="verification")
    if not twin and len(inputs[0]) < 2:
        raise ExportError("The outputs of one sample have no scatter to hold an error against. Give two or more.")
    references = predict(model, inputs)
    if not all(np.isfinite(reference).all() for reference in references) and (broken := broken_in(model)):
        raise ExportError(f"{broken} Model {model.name!r} answers with such values, so that no file can agree with it.")
    answers = runtime.run(inputs)
    if [answer.shape for answer in answers] != [reference.shape for reference in references]:
        raise ExportError(
            f"{runtime.path} gives outputs of the shapes {[a.shape for a in answers]}; the model gives "
            f"{[r.shape for r in references]}. Is it another model's file?"
        )
    pairs = list(zip(answers, references, runtime.outputs, strict=True))
    steps = [
        steps_apart(a, r, port.scale, squashing_of(output, port.scale))
        for (a, r, port), output in zip(pairs, model.outputs, strict=True)
        if port.scale and twin
    ]
    together = np.concatenate([each.reshape(-1) for each in steps]) if len(steps) == len(pairs) else None
    rows = [same_argmax(a, r, port.scale or 0.0) for a, r, port in pairs if r.ndim > 1 and r.shape[-1] > 1]
    return Agreement(
        max_relative_error=max(relative_error(a, r) for a, r, _ in pairs),
        within_two_steps=None if together is None else float((together <= 2.01).mean()),
        max_steps=None if together is None else float(together.max()),
        argmax_agreement=float(np.concatenate(rows).mean()) if rows else None,
        samples=len(inputs[0]),
        source="random" if data is None else "data",
        signal_to_noise_db=None if twin else min(signal_to_noise(a, r) for a, r, _ in pairs),
    )


def check_batches(runtime: Runtime, model: keras.Model) -> None:
    """Raise an `ExportError` when a file with an open batch answers otherwise one by one than three at once."""
    if runtime.inputs[0].shape[0] is not None:
        return
    inputs = random_inputs(model, count=3)
    together = runtime.run(inputs)
    alone = [runtime.run([array[n : n + 1] for array in inputs]) for n in range(3)]
    for index, (answer, port) in enumerate(zip(together, runtime.outputs, strict=True)):
        one_by_one = np.concatenate([each[index] for each in alone])
        same = one_by_one.shape == answer.shape and (
            relative_error(one_by_one, answer) <= BATCH_TOLERANCE
            or bool(port.scale and steps_apart(one_by_one, answer, port.scale).max() <= 2.01)
        )
        if not same:
            raise ExportError(
                f"{runtime.path} answers otherwise in a batch of 3 than one by one, at output {port.name!r}: layers "
                "look across the batch, or the runtime does not take batches of any size. Export with batch=1."
            )


def relative_error(answer: np.ndarray, reference: np.ndarray) -> float:
    """Give max|a - b| / max|b|; infinite where the answer is not finite.

    Example:
        >>> relative_error(np.array([1.0, 2.5]), np.array([1.0, 2.0]))
        0.25
        >>> relative_error(np.array([np.nan]), np.array([1.0]))
        inf
    """
    if not np.isfinite(answer).all():
        return float("inf")
    largest = float(np.abs(reference).max())
    return float(np.abs(answer - reference).max()) / (largest or 1.0)


def signal_to_noise(answer: np.ndarray, reference: np.ndarray) -> float:
    """Give 10 · log10(var b / mean (a - b)²) in decibels, least over the entries of the last axis.

    Variance and mean are taken over the samples, and added up over the axes between: what all samples have in common is
    no signal, be it as great as it may. An entry that varies less than the others counts as if its variance were a
    tenth of the greatest; one that never varies does not count.

    Args:
        answer: a, (samples, ...).
        reference: b, of the same shape.

    Returns:
        Decibels; infinite where nothing differs, minus infinity where an answer is not finite or nothing varies.

    Example:
        >>> signal_to_noise(np.array([0.9, -0.9]), np.array([1.0, -1.0]))
        20.0
        >>> signal_to_noise(np.array([[5.0, 1.0], [5.0, -1.0]]), np.array([[4.0, 1.0], [6.0, -1.0]]))
        0.0
    """
    squares = (answer.astype(np.float64) - reference) ** 2
    noise, signal = _by_entry(np.mean(squares, axis=0)), _by_entry(np.var(reference.astype(np.float64), axis=0))
    if not noise.any():
        return float("inf")
    if not signal.any() or not np.isfinite(noise).all():
        return float("-inf")
    counted = np.maximum(signal, LEAST_SIGNAL * signal.max())[signal > 0]
    loudest = float(np.max(noise[signal > 0] / counted))
    return round(10 * float(np.log10(1 / loudest)), 3) if loudest else float("inf")


def _by_entry(values: np.ndarray) -> np.ndarray:
    """Add up over all axes but the last."""
    return np.atleast_1d(values).reshape(-1, values.shape[-1] if values.ndim else 1).sum(0)


def same_argmax(answer: np.ndarray, reference: np.ndarray, step: float = 0.0) -> np.ndarray:
    """Say for each row whether the answer's greatest entry is one of the reference's greatest.

    Entries within half a step of each other are equal on the grid: any of them counts.

    Example:
        >>> same_argmax(np.array([[1.0, 0.9], [0.0, 1.0]]), np.array([[1.0, 1.0], [1.0, 0.0]]))
        array([ True, False])
    """
    answer, reference = (x.reshape(-1, x.shape[-1]) for x in (answer, reference))
    chosen = np.take_along_axis(reference, answer.argmax(-1)[:, None], -1)[:, 0]
    return chosen >= reference.max(-1) - step / 2


def predict(model: keras.Model, inputs: Sequence[np.ndarray], batch_size: int = 64) -> list[np.ndarray]:
    """Run a model in inference; give one array an output, in the order of `model.outputs`."""
    structure = model.inputs if isinstance(model, keras.Sequential) else model.input
    rows: list[list[np.ndarray]] = [[] for _ in model.outputs]
    for start in range(0, len(inputs[0]), batch_size):
        batch = [array[start : start + batch_size] for array in inputs]
        packed = batch[0] if isinstance(model, keras.Sequential) else keras.tree.pack_sequence_as(structure, batch)
        for row, output in zip(rows, keras.tree.flatten(model(packed, training=False)), strict=True):
            row.append(np.asarray(keras.ops.convert_to_numpy(output)))
    return [np.concatenate(row) for row in rows]


def random_inputs(model: keras.Model, count: int = RANDOM_SAMPLES, seed: int = 0) -> list[np.ndarray]:
    """Draw seeded inputs: over an input's own range where a quantized model knows it, else standard-normal."""
    rng = np.random.default_rng(seed)
    ranges: dict[str, tuple[float, float]] = {}
    for layer in model._flatten_layers():
        if isinstance(layer, FakeQuant):
            source = layer._inbound_nodes[0].input_tensors[0]._keras_history.operation
            ranges[source.name] = layer.range()
    arrays = []
    for tensor in model.inputs:
        shape = (count, *tensor.shape[1:])
        name = tensor._keras_history.operation.name
        if np.dtype(tensor.dtype).kind in "iu":
            arrays.append(rng.integers(0, 2, shape).astype(tensor.dtype))
        elif name in ranges:
            low, high = ranges[name]
            arrays.append(rng.uniform(low, high, shape).astype(tensor.dtype))
        else:
            arrays.append(rng.normal(size=shape).astype(tensor.dtype))
    return arrays
