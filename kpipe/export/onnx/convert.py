"""ONNX (.onnx): written by tf2onnx, run by onnxruntime."""

from typing import Any, cast

import keras
import numpy as np
import tensorflow as tf

from kpipe.errors import ExportError
from kpipe.export.formats import FLOAT, FORMATS, Format
from kpipe.export.onnx.inspect import inspect
from kpipe.export.onnx.int8 import inside, store_levels
from kpipe.export.onnx.load import first_line
from kpipe.export.onnx.metadata import embed, extract
from kpipe.export.onnx.names import rename
from kpipe.export.onnx.runtime import OnnxRuntime
from kpipe.export.onnx.shapes import known_reshapes
from kpipe.export.onnx.shared import separate
from kpipe.export.onnx.transposes import without_dead_transposes
from kpipe.export.onnx.weights import in_halves, store_weights
from kpipe.export.quiet import quiet
from kpipe.export.signature import input_names, serving
from kpipe.fake_quant import SCHEMES, activation_bits, float_layers, rounded_layers
from kpipe.fake_quant.affine import HALF
from kpipe.graph import replay
from kpipe.layers.preprocessing import scale_and_offset

OPSET = 18
OPSET_OF_FOUR_BITS = 21


def convert(model: keras.Model, precision: str, names: list[str], batch: int | None = None, io: str = FLOAT) -> bytes:
    """Write a model as an ONNX file for batches of any size, or of one.

    Args:
        model: The model; of a scheme's precision one that was baked.
        precision: "float32"; "float16": weights are stored and computed with so; "int8_dynamic", "int4": weights are
            stored so and multiplied by their scales; or "int8", "w4a8": QuantizeLinear and DequantizeLinear round the
            activations, the weights of convolutions and dense layers are stored as whole numbers. Inputs and outputs
            are float32 always.
        names: Names of the outputs, in the order of `model.outputs`.
        batch: The size; None leaves it open.
        io: "float32", the type of all inputs and outputs.

    Returns:
        The file's content; its inputs and outputs are in the Keras order.

    Raises:
        ExportError: When tf2onnx refuses the model.
    """
    import onnx

    ends = {id(tensor) for tensor in model.inputs}
    if passed := [name for name, tensor in zip(names, model.outputs, strict=True) if id(tensor) in ends]:
        raise ExportError(
            f"Output {passed[0]!r} of model {model.name!r} is an input as it came, which tf2onnx cannot write. Leave "
            "it out: the caller has it."
        )
    with quiet():
        import tf2onnx

        serve, specs = serving(_readable(model), names, batch)
        try:
            function = tf.function(serve, input_signature=specs)
            proto, _ = tf2onnx.convert.from_function(
                function, input_signature=specs, opset=OPSET, custom_op_handlers={"Erfc": (_write_erfc, [])}
            )
            _store_captured(proto.graph, function)
            _order(proto.graph.input, input_names(model))
            _order(proto.graph.output, names)
            proto = _stored(proto, precision)
            known_reshapes(proto)
            rename(proto.graph, *_islands(model, precision))
            if precision == "float32":
                proto = without_dead_transposes(proto)
            onnx.checker.check_model(proto, full_check=True)
        except Exception as error:
            raise ExportError(f"tf2onnx cannot write model {model.name!r}: {first_line(error)}") from error
    return proto.SerializeToString()


def _store_captured(graph: Any, function: Any) -> None:
    """Store the constants that a function has captured; tf2onnx takes them for inputs."""
    from onnx import numpy_helper

    concrete = function.get_concrete_function()
    inputs = {end.name for end in graph.input}
    for value, place in zip(concrete.captured_inputs, concrete.graph.internal_captures, strict=True):
        if place.name in inputs:
            graph.initializer.append(numpy_helper.from_array(value.numpy(), place.name))


def _stored(proto: Any, precision: str) -> Any:
    """Give a graph with its weights stored in a precision."""
    import onnx

    if precision not in SCHEMES:
        return proto
    scheme = SCHEMES[precision]
    if scheme.weights == HALF:
        return in_halves(proto)
    if scheme.activations is None:
        store_weights(proto)
    else:
        store_levels(proto)
        separate(proto.graph)
    if scheme.weights == 8:
        return proto
    proto = onnx.version_converter.convert_version(proto, OPSET_OF_FOUR_BITS)
    _forget_shapes(proto.graph)
    return proto


def _forget_shapes(graph: Any) -> None:
    """Leave out the shapes of what is computed in between, in loops too: runtimes infer them, and they take room."""
    del graph.value_info[:]
    for node in graph.node:
        for inner in inside(node):
            _forget_shapes(inner)


def _islands(model: keras.Model, precision: str) -> tuple[list[str], set[str] | None]:
    """Name the layers that compute in float in a file of whole numbers; and the others, where operations do so too."""
    return ([], None) if activation_bits(precision) is None else (list(float_layers(model)), rounded_layers(model))


def _write_erfc(context: Any, node: Any, name: str, args: Any) -> None:
    """Write erfc(x), of which the exact GELU is made and which ONNX lacks, as 1 - erf(x)."""
    x, y, dtype = node.input[0], node.output[0], context.get_dtype(node.output[0])
    shape = context.get_shape(y)
    context.remove_node(node.name)
    one = context.make_const(f"{name}_one", np.ones((), np.float32)).output[0]
    erf = context.make_node("Erf", [x], dtypes=[dtype], shapes=[shape]).output[0]
    context.make_node("Sub", [one, erf], outputs=[y], dtypes=[dtype], shapes=[shape])


def _order(ends: Any, names: list[str]) -> None:
    """Sort a graph's inputs or outputs in place; tf2onnx puts ":0" behind some names."""
    by_name = {end.name: end for end in ends}
    ordered = [by_name[name] for name in names]
    copies = [type(end).FromString(end.SerializeToString()) for end in ordered]
    del ends[:]
    ends.extend(copies)


@keras.saving.register_keras_serializable(package="kpipe")
class GroupedConvolution(keras.layers.Conv2D):
    """A grouped convolution without the compiled function that Keras wraps round it and tf2onnx cannot read."""

    def call(self, inputs: Any) -> Any:
        """Convolve, (batch, h, w, in) -> (batch, h, w, filters)."""
        padding: Any = self.padding.upper()
        y = tf.nn.conv2d(inputs, self.kernel, self.strides, padding, dilations=self.dilation_rate)
        y = tf.nn.bias_add(y, self.bias) if self.use_bias else y
        return self.activation(y)


def _readable(model: keras.Model) -> keras.Model:
    """Replace layers that tf2onnx cannot read; any other model is given back as it is."""
    if not any(
        _is_grouped(layer) or isinstance(layer, keras.layers.Normalization) for layer in model._flatten_layers()
    ):
        return model
    made: dict[int, Any] = {}

    def call(site: Any, *args: Any, **kwargs: Any) -> Any:
        layer = site.operation
        if id(layer) not in made:
            made[id(layer)] = _readable_layer(layer, site.input_shapes[0])
        return made[id(layer)](*args, **kwargs)

    return replay(model, call)


def _readable_layer(layer: Any, input_shape: tuple[int | None, ...]) -> Any:
    """Give what computes the same: of a normalization a rescaling, tf2onnx stumbles over the constants inside."""
    if isinstance(layer, keras.layers.Normalization):
        scale, offset = cast(tuple[Any, Any], scale_and_offset(layer))
        return keras.layers.Rescaling(scale, offset, name=layer.name)
    if not _is_grouped(layer):
        return layer
    copy = GroupedConvolution.from_config(layer.get_config())
    copy.build(input_shape)
    copy.set_weights(layer.get_weights())
    return copy


def _is_grouped(layer: Any) -> bool:
    return type(layer) is keras.layers.Conv2D and layer.groups > 1


FORMATS("onnx")(
    Format(
        suffix=".onnx",
        precisions=(FLOAT, *SCHEMES),
        convert=convert,
        runtime=OnnxRuntime,
        inspect=inspect,
        embed=embed,
        extract=extract,
        batch=None,
        whole_ends=False,
    )
)
