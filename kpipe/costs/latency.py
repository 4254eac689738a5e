"""Milliseconds for one sample in LiteRT on this machine: of a model, and of each of its layers."""

import json
import math
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from kpipe.copies import in_float32
from kpipe.errors import ExportError
from kpipe.export import load_runtime
from kpipe.export.additions import broadcast_additions
from kpipe.export.benchmark import SHORTEST_TIMING
from kpipe.export.quiet import quiet
from kpipe.export.runtime import Runtime
from kpipe.export.signature import check_exportable
from kpipe.export.trial import trust
from kpipe.graph import Site, Trace, at_inference, sites
from kpipe.structured import counts
from kpipe.structured.channels import remove_channels
from kpipe.structured.ranking import keep_of
from kpipe.structured.targets import TARGETS, Estimate, Measure, Target

WINDOWS, RUNS = 12, 15
"""Timings are taken in so many windows of so many runs. The median of the quietest window counts."""

LAYER_WINDOWS, LAYER_RUNS = 3, 8
"""The same for a single layer."""

LAYER_MS: dict[str, float] = {}
"""Layers that were timed in this process: what they are, without names and weights -> milliseconds."""


def litert_ms(model: keras.Model) -> float:
    """Measure how long one sample takes in LiteRT, float32, one thread.

    The time that counts is the one thread's own on the processor: it is what passes by the clock on a machine that does
    nothing else, and hardly changes on a busy one.

    Args:
        model: A built model with fixed inputs.

    Returns:
        Milliseconds: the median of the quietest of `WINDOWS` windows of `RUNS` timings.

    Raises:
        ExportError: When the model cannot be exported.

    Example:
        >>> 0 < litert_ms(keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)])) < 10
        True
    """
    return time_files([write(model)], WINDOWS, RUNS)[0]


def measure_in_turns(original: keras.Model) -> Measure:
    """Prepare to measure smaller models, each in turns with the original.

    A machine is now faster, now slower. So what a candidate takes is its ratio to the original in the same minute,
    times what the original took in the beginning.

    Args:
        original: A built model with fixed inputs.

    Returns:
        A model -> milliseconds.
    """
    content = write(in_float32(original, "The LiteRT file"))
    (before,) = time_files([content], WINDOWS, RUNS)

    def measure(model: keras.Model) -> float:
        if model is original:
            return before
        now, found = time_files([content, write(model)], WINDOWS, RUNS)
        return before * found / now

    return measure


def write(model: keras.Model) -> bytes:
    """Write a model as a float32 LiteRT file for one sample, not proved; one of half precision too.

    Raises:
        ExportError: When it cannot be exported.
    """
    check_exportable(model)
    model = in_float32(model, "The LiteRT file", told=False)
    structure = model.inputs if isinstance(model, keras.Sequential) else model.input

    def call(*tensors: Any) -> Any:
        packed = keras.tree.pack_sequence_as(structure, list(tensors))
        return model(packed[0] if isinstance(model, keras.Sequential) else packed, training=False)

    specs = [tf.TensorSpec((1, *tensor.shape[1:]), tensor.dtype) for tensor in model.inputs]
    return convert(call, model.variables, specs)


def convert(call: Callable[..., Any], variables: Sequence[keras.Variable], specs: Sequence[tf.TensorSpec]) -> bytes:
    """Write a function of tensors as a LiteRT file; variables become constants in it.

    Raises:
        ExportError: When LiteRT's converter refuses it.
    """
    held = [(variable, tf.constant(variable.value)) for variable in variables if variable.dtype.startswith("float")]

    def frozen(*tensors: Any) -> list[Any]:
        with keras.StatelessScope(state_mapping=held), broadcast_additions():
            return keras.tree.flatten(call(*tensors))

    with quiet():
        function: Any = tf.function(frozen, autograph=False)
        converter = tf.lite.TFLiteConverter.from_concrete_functions([function.get_concrete_function(*specs)])
        try:
            return converter.convert()
        except Exception as error:
            raise ExportError(f"LiteRT's converter refuses the model: {str(error)[:500]}") from error


def time_files(contents: Sequence[bytes], windows: int, runs: int) -> list[float]:
    """Time LiteRT files in turns, run by run; give for each the median milliseconds of its quietest window."""
    with tempfile.TemporaryDirectory() as folder:
        runtimes: list[Runtime] = []
        try:
            for number, content in enumerate(contents):
                path = Path(folder) / f"{number}.tflite"
                path.write_bytes(content)
                trust(content)
                runtimes.append(load_runtime(path))
            calls = [runtime.invocation(_sample(runtime)) for runtime in runtimes]
            seconds = _take_turns(calls, windows * runs)
        finally:
            for runtime in runtimes:
                runtime.close()
    medians = np.median(seconds.reshape(len(contents), windows, runs), axis=2)
    return [float(least) for least in medians.min(axis=1) * 1e3]


def _sample(runtime: Runtime) -> list[np.ndarray]:
    """Draw one sample: normal values, zeros where whole numbers are taken, which may be places in a table."""
    rng, sample = np.random.default_rng(0), []
    for port in runtime.inputs:
        shape = tuple(size or 1 for size in port.shape)
        sample.append(
            rng.normal(size=shape).astype("float32") if "float" in port.dtype else np.zeros(shape, port.dtype)
        )
    return sample


def _take_turns(calls: Sequence[Callable[[], object]], runs: int) -> np.ndarray:
    """Time all calls in turn; give seconds on the processor for one call, shape (calls, runs)."""
    repeats = [max(1, math.ceil(SHORTEST_TIMING / max(_seconds(call, 2), 1e-9))) for call in calls]
    return np.array([[_seconds(call, n) for call, n in zip(calls, repeats, strict=True)] for _ in range(runs)]).T


def _seconds(call: Callable[[], object], repeats: int) -> float:
    start = time.thread_time()
    for _ in range(repeats):
        call()
    return (time.thread_time() - start) / repeats


def estimate_ms(model: keras.Model, trace: Trace) -> Estimate:
    """Model the latency layer by layer: each that has kernels is timed alone, whole and with half of its channels.

    Between and beyond the two, a layer's time goes with its MACs along a straight line. What the other layers take is
    left out. Layers that are alike are timed once, and what was timed is kept as long as the process runs.

    Args:
        model: The traced model.
        trace: Its trace.

    Returns:
        The estimate.
    """
    half = keep_of(trace, [np.arange(1, len(group), 2) for group in trace.groups])
    small = remove_channels(model, trace, half)
    whole_ms, half_ms = (time_layers(each) for each in (model, small))
    everything = np.ones(trace.class_count, bool)
    products: list[tuple[Any, ...]] = []
    for layer in trace.layers:
        if layer.path not in whole_ms:
            continue
        each = [*(counts.entries(w, w.reuse) for w in layer.weights if w.reuse), *layer.products]
        macs = counts.total(trace, each)
        more = macs(everything) - macs(half)
        slope = max(0.0, whole_ms[layer.path] - half_ms[layer.path]) / more if more else 0.0
        products.append((whole_ms[layer.path] - slope * macs(everything),))
        products += [(slope, *product) for product in each]
    return counts.total(trace, products)


def time_layers(model: keras.Model) -> dict[str, float]:
    """Time every layer of a model that multiplies; path -> milliseconds for all its calls.

    Example:
        >>> layers = [keras.Input((4,)), keras.layers.Dense(3, name="a"), keras.layers.ReLU(), keras.layers.Dense(2)]
        >>> sorted(time_layers(keras.Sequential(layers)))[0]
        'a'
    """
    full = in_float32(model, "The LiteRT file", told=False)
    found = [site for site in sites(full).sites if _multiplies(site)]
    fresh = {key: site for site in found if (key := _without_name(site)) not in LAYER_MS}
    contents = [_one_layer(site) for site in fresh.values()]
    LAYER_MS.update(zip(fresh, time_files(contents, LAYER_WINDOWS, LAYER_RUNS) if contents else [], strict=True))
    result: dict[str, float] = {}
    for site in found:
        result[site.path] = result.get(site.path, 0.0) + LAYER_MS[_without_name(site)]
    return result


def _multiplies(site: Site) -> bool:
    return isinstance(site.operation, keras.Layer) and any(len(v.shape) > 1 for v in site.operation.weights)


def _without_name(site: Site) -> str:
    """Describe a call of a layer without its name and weights: calls alike take the same time."""
    config = {key: value for key, value in site.operation.get_config().items() if key != "name"}
    what = [type(site.operation).__name__, config, site.input_shapes, [w.shape for w in site.operation.weights]]
    return json.dumps(what, default=str, sort_keys=True)


def _one_layer(site: Site) -> bytes:
    tensors = site.node.arguments.keras_tensors
    keys = list(dict.fromkeys(site.inputs))
    specs = [
        tf.TensorSpec((1, *shape[1:]), tensor.dtype)
        for key, shape, tensor in ((key, *next(_of(site, key, tensors))) for key in keys)
    ]

    def call(*values: Any) -> Any:
        args, kwargs = site.rebind(dict(zip(keys, values, strict=True)))
        return at_inference(site.operation, *args, **kwargs)

    return convert(call, site.operation.variables, specs)


def _of(site: Site, key: int, tensors: Sequence[Any]) -> Any:
    return ((shape, t) for k, shape, t in zip(site.inputs, site.input_shapes, tensors, strict=True) if k == key)


TARGETS("latency_ms")(
    Target("absolute", estimate_ms, measure_in_turns, "milliseconds for one sample in LiteRT on this machine")
)
