"""Quantized models: where ranges stand, that they agree with what they came from, and that they train."""

from typing import Any, cast

import keras
import numpy as np
import pytest
from keras import layers as L

import kpipe
from kpipe.errors import KpipeError, NoEffectWarning
from kpipe.export import load_runtime
from kpipe.export.verify import predict
from kpipe.fake_quant import FakeQuant, QuantizedModel, QuantizedWeights, bake, float_layers, is_quantized
from kpipe.quantize.split import split
from tests.models import ZOO, build, samples


def plain(arrays):
    return arrays[0] if len(arrays) == 1 else arrays


@pytest.fixture(scope="module")
def quantized():
    made = {}

    def get(name):
        if name not in made:
            model = build(name)
            made[name] = (model, kpipe.quantize(model, calibration=plain(samples(model, 64))))
        return made[name]

    return get


@pytest.mark.sweep(3)
@pytest.mark.parametrize("name", list(ZOO))
def test_splitting_changes_no_output(name):
    model = build(name)
    x = samples(model)
    for a, b in zip(predict(split(model).model, x), predict(model, x), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)


@pytest.mark.sweep(4)
@pytest.mark.parametrize("name", list(ZOO))
def test_quantized_stays_close_and_leaves_the_original_alone(name, quantized):
    model, made = quantized(name)
    x = samples(model, 64)
    assert [v.tolist() for v in model.get_weights()] == [v.tolist() for v in build(name).get_weights()]
    assert [t.name for t in made.inputs] == [t.name for t in model.inputs]
    for a, b in zip(predict(made, x), predict(model, x), strict=True):
        assert np.abs(a - b).max() < 0.05 * np.abs(b).max()
        assert np.abs(a - b).max() > 0


@pytest.mark.sweep(3)
@pytest.mark.parametrize("name", list(ZOO))
def test_baked_equals_quantized(name, quantized):
    model, made = quantized(name)
    x = samples(model, 64, seed=3)
    baked = bake(made)
    assert not any(isinstance(layer, (QuantizedWeights, L.BatchNormalization)) for layer in baked.layers)
    last = [layer for layer in made.layers if isinstance(layer, FakeQuant)][-1]
    step = float(last.high - last.low) / 255
    for a, b in zip(predict(baked, x), predict(made, x), strict=True):
        assert np.abs(a - b).max() < 3.1 * step
        assert np.mean(np.abs(a - b) < step / 2) > 0.99


def test_ranges_stand_behind_fused_groups_only(quantized):
    _, made = quantized("conv_bn")
    names = [layer.name for layer in made.layers if isinstance(layer, FakeQuant)]
    assert names == ["image_range", "relu1_range", "conv2_relu_range", "fc_relu_range", "logits_range"]


def test_ranges_are_the_least_and_greatest_seen():
    model = keras.Sequential([keras.Input((3,), name="x"), L.ReLU(name="relu")])
    x = np.random.default_rng(0).normal(size=(70, 3)).astype("float32")
    made = kpipe.quantize(model, calibration=x)
    before, behind = made.get_layer("x_range"), made.get_layer("relu_range")
    np.testing.assert_allclose((before.low, before.high), (x.min(), x.max()), rtol=1e-6)
    np.testing.assert_allclose((behind.low, behind.high), (0.0, x.max()), rtol=1e-6)


def test_other_activations_are_split_off_and_keep_the_name():
    model = keras.Sequential([keras.Input((3,)), L.Dense(4, activation="softmax", name="classes")])
    made = kpipe.quantize(model, calibration=np.eye(3, dtype="float32"))
    kinds = [type(layer).__name__ for layer in made.layers[2:]]
    assert kinds == ["QuantizedWeights", "QuantizedBias", "FakeQuant", "Activation", "FakeQuant"]
    assert made.layers[-2].name == "classes"
    assert float(made.layers[-1].high) == pytest.approx(255 / 256)


def test_a_shared_layer_stays_shared(quantized):
    model, made = quantized("siamese")
    kernels = [layer for layer in made.layers if isinstance(layer, QuantizedWeights)]
    assert len(kernels) == 5  # tower/conv, tower/fc, shared, first, second
    assert made.output_shape == model.output_shape


def test_it_trains_and_keeps_pruned_zeros():
    model = build("depthwise")
    rng, zeros = np.random.default_rng(0), {}
    for layer in model.layers:
        if isinstance(layer, (L.Conv2D, L.SeparableConv2D, L.Dense)):
            values = layer.get_weights()
            values[0] = np.where(rng.random(values[0].shape) < 0.6, 0.0, values[0])
            layer.set_weights(values)
    x = samples(model, 64)[0]
    made: Any = kpipe.quantize(model, calibration=x)
    for layer in made.layers:
        if isinstance(layer, QuantizedWeights):
            zeros[layer.name] = layer.kernels()[0].variable.numpy() == 0
    made.compile(keras.optimizers.Adam(1e-2), "mse", jit_compile=False)
    before = made.evaluate(x, predict(model, [x])[0] + 1.0, verbose=0)
    made.fit(x, predict(model, [x])[0] + 1.0, epochs=4, batch_size=16, verbose=0)
    assert made.evaluate(x, predict(model, [x])[0] + 1.0, verbose=0) < before
    assert sum(mask.sum() for mask in zeros.values()) > 100
    for name, mask in zeros.items():
        assert (made.get_layer(name).kernels()[0].variable.numpy()[mask] == 0).all(), name


@pytest.mark.sweep(1)
@pytest.mark.parametrize("scheme", ["int8", "int8_dynamic"])
def test_losses_and_metrics_are_given_by_the_names_that_outputs_had(scheme, tmp_path):
    """An output of a model inside, one with an activation that is split off, and a plain one."""
    x = keras.Input((4,), name="x")
    inner = keras.Input((4,))
    head = keras.Model(inner, L.Dense(2, name="fc")(inner), name="head")
    model = keras.Model(x, [head(x), L.Dense(3, "softmax", name="classes")(x), L.Dense(1, name="size")(x)])
    names = {"head", "classes", "size"}
    data = np.random.default_rng(0).normal(size=(16, 4)).astype("float32")
    calibration = data if scheme == "int8" else None
    made: Any = kpipe.quantize(model, scheme, calibration=calibration)
    losses, shares = dict.fromkeys(names, "mse"), dict.fromkeys(names, 0.5)
    made.compile("sgd", losses, metrics={"classes": ["mae"]}, loss_weights=shares)
    targets = {"head": np.zeros((16, 2)), "classes": np.zeros((16, 3)), "size": np.zeros((16, 1))}
    made.fit(data, targets, verbose=0)
    made.save(tmp_path / "q.keras")
    again: Any = keras.models.load_model(tmp_path / "q.keras")
    found = again.evaluate(data, targets, verbose=0, return_dict=True)
    assert found == pytest.approx(made.evaluate(data, targets, verbose=0, return_dict=True))
    assert "classes_mae" in found and set(again.output_names) == names
    file = kpipe.export(again, tmp_path / "q.tflite", data=data)
    with load_runtime(file) as runtime:
        assert [end.name for end in runtime.outputs] == ["head", "classes", "size"]


def test_a_clone_of_a_quantized_model_has_its_names(quantized):
    made = quantized("conv_bn")[1]
    assert keras.models.clone_model(made).output_names == made.output_names == ["logits"]
    # The control: what Keras makes of the same graph.
    assert keras.Model(made.inputs, made.outputs).output_names == ["logits_range"]


@pytest.mark.parametrize("names", [[], ["a", "b"]])
def test_as_many_names_as_outputs_are_asked_for(names):
    x = keras.Input((4,))
    with pytest.raises(KpipeError, match=r"output_names are .*; expected 1, one for each output"):
        QuantizedModel(x, L.Dense(2)(x), output_names=names)


def test_it_saves_and_loads(tmp_path, quantized):
    model, made = quantized("se_block")
    made.save(tmp_path / "q.keras")
    again: Any = keras.models.load_model(tmp_path / "q.keras")
    assert is_quantized(again) and not is_quantized(model)
    x = samples(model)
    np.testing.assert_array_equal(predict(again, x)[0], predict(made, x)[0])


@pytest.mark.parametrize(
    ("layer", "shape", "why"),
    [
        (L.LSTM(3, name="it"), (4, 2), r"'it': no integer kernel is known"),
        (L.LayerNormalization(name="it"), (4,), r"'it': no integer kernel is known"),
        (L.Lambda(lambda x: 2 * x, name="it"), (4,), r"'it': no integer kernel is known"),
        (L.Activation("elu", name="it"), (4,), r"'it': the runtimes compute 'elu' in float"),
        (L.Softmax(axis=1, name="it"), (4, 4, 2), r"'it': its axis is 1"),
        (L.BatchNormalization(axis=1, name="it"), (4, 4, 2), r"'it': it normalises axis 1"),
        (L.ReLU(threshold=0.5, name="it"), (4,), r"'it': integer kernels know no threshold"),
        (L.Rescaling(np.ones((4, 2)).tolist(), name="it"), (4, 2), r"'it': it has arrays of the shapes"),
        (L.Conv3D(2, 1, name="it"), (2, 2, 2, 2), r"'it': its input .* has 5 axes"),
    ],
)
def test_islands_are_named_or_refused(layer, shape, why):
    model = keras.Sequential([keras.Input(shape), layer])
    x = np.random.default_rng(0).normal(size=(2, *shape)).astype("float32")
    with pytest.warns(UserWarning, match=rf"computes in float in {why}"):
        made = kpipe.quantize(model, calibration=x)
    assert list(float_layers(made)) == ["it"]
    with pytest.raises(KpipeError, match=rf"No integer kernels for {why}"):
        kpipe.quantize(model, calibration=x, islands="refuse")


@pytest.mark.parametrize(
    ("make", "why"),
    [
        (lambda: L.Dense(3, dtype="float64", name="it"), r"'it' .*Dense.*: it computes in float64.*float32"),
        (lambda: L.Conv2D(3, 1, data_format="channels_first", name="it"), r"'it' .*Conv2D.*: .*channels_first"),
    ],
)
def test_what_cannot_be_quantized_is_named(make, why):
    model = keras.Sequential([keras.Input((4, 4, 4)), make()])
    with pytest.raises(KpipeError, match=why):
        kpipe.quantize(model, calibration=np.zeros((2, 4, 4, 4), "float32"))


@pytest.mark.parametrize("norm", [False, True], ids=["alone", "before a norm"])
@pytest.mark.parametrize("suffix", ["tflite", "onnx"])
def test_what_is_left_out_keeps_its_activation(suffix, norm, tmp_path):
    """max(0, w·x + b), then its norm: neither the negation in the file nor the norm may come before the maximum."""
    layers: list[Any] = [L.Conv2D(4, 3, activation="relu", name="first")]
    layers += [L.BatchNormalization(beta_initializer="ones", moving_mean_initializer="ones")] if norm else []
    model = keras.Sequential([keras.Input((6, 6, 2)), *layers, L.Flatten(), L.Dense(3)])
    x = np.random.default_rng(0).normal(size=(64, 6, 6, 2)).astype("float32")
    made = kpipe.quantize(model, calibration=x, exclude="first")
    file = kpipe.export(made, tmp_path / f"m.{suffix}", data=x)
    with load_runtime(file) as runtime:
        (found,) = runtime.run([x])
    (step,) = [port.scale for port in runtime.outputs]
    assert np.abs(found - np.asarray(model(x))).max() < 4 * step


def test_what_is_left_out_stays_in_float(tmp_path):
    model = build("conv_bn")
    x = samples(model, 64)[0]
    made: Any = kpipe.quantize(model, calibration=x, exclude="conv1|logits")
    assert float_layers(made) == {"conv1": "it was left out", "logits": "it was left out"}
    original = model.get_layer("conv1").kernel.numpy()
    np.testing.assert_array_equal(made.get_layer("conv1").layer.kernel.numpy(), original)
    for suffix, store in (("tflite", tflite_constants), ("onnx", onnx_constants)):
        file = kpipe.export(made, tmp_path / f"m.{suffix}", data=x)
        kinds = store(file.path)
        # conv1, in which its norm is folded, has 8·3·9 float weights, the logits 14·5; those of the others are int8.
        assert {kinds[8 * 3 * 9], kinds[14 * 5]} == {"float32"}
        assert {kinds[12 * 8 * 9], kinds[4 * 4 * 12 * 14]} == {"int8"}


def tflite_constants(path):
    """Give size -> type of what a file stores with several axes."""
    from ai_edge_litert import schema_py_generated as schema

    model: Any = schema.ModelT.InitFromPackedBuf(path.read_bytes(), 0)
    types = {value: name.lower() for name, value in vars(schema.TensorType).items() if isinstance(value, int)}
    stored = [tensor for tensor in model.subgraphs[0].tensors if model.buffers[tensor.buffer].data is not None]
    return {int(np.prod(tensor.shape)): types[tensor.type] for tensor in stored if len(tensor.shape) > 1}


def onnx_constants(path):
    """Give size -> type of what a file stores with several axes."""
    import onnx
    from onnx import numpy_helper

    arrays = [numpy_helper.to_array(tensor) for tensor in onnx.load(str(path)).graph.initializer]
    return {array.size: array.dtype.name for array in arrays if array.ndim > 1}


@pytest.mark.parametrize(
    ("exclude", "why"),
    [
        ("nothing", r"'nothing' means no layer .*conv1, conv2, fc, logits"),
        ("(", r"'\(', which is no regular expression"),
        (L.Dense(2, name="fc"), "exclude is <Dense name=fc.*expected a regular expression"),
    ],
)
def test_an_exclusion_that_means_nothing_is_refused(exclude, why):
    model = build("conv_bn")
    with pytest.raises(KpipeError, match=why):
        kpipe.quantize(model, calibration=samples(model)[0], exclude=exclude)


@pytest.mark.parametrize(
    ("calibration", "why"),
    [
        (None, "calibration data"),
        (np.zeros((0, 12), "float32"), "empty"),
        (np.zeros((4, 5), "float32"), r"\(5,\).*\(12,\)"),
        (np.full((4, 12), np.nan, "float32"), "NaN"),
        ({"features": [np.zeros((4, 12), "float32")]}, "holds a list for 'features'; expected an array"),
    ],
)
def test_bad_calibration(calibration, why):
    with pytest.raises(KpipeError, match=why):
        kpipe.quantize(build("dense"), calibration=calibration)


def test_a_model_is_rounded_where_all_but_its_table_is_left_out():
    model = keras.Sequential([keras.Input((4,), dtype="int32"), L.Embedding(9, 3), L.Flatten(), L.Dense(2, name="out")])
    with pytest.warns(NoEffectWarning, match="multiply by weights are left out: out. Its file may be no smaller"):
        made = kpipe.quantize(model, calibration=np.arange(36).reshape(9, 4) % 9, exclude="out")
    assert float_layers(made) == {"out": "it was left out"}


def test_bad_models_and_schemes(quantized):
    x = np.zeros((2, 12), "float32")
    with pytest.raises(KpipeError, match="Keras"):
        kpipe.quantize(cast(Any, "model.keras"), calibration=x)
    with pytest.raises(KpipeError, match="not built"):
        kpipe.quantize(keras.Sequential([L.Dense(2)]), calibration=x)
    with pytest.raises(KpipeError, match="Did you mean 'int8'"):
        kpipe.quantize(build("dense"), "int88", calibration=x)
    with pytest.raises(KpipeError, match="Received ndarray for a scheme; expected one of int8, "):
        kpipe.quantize(build("dense"), cast(Any, x))
    by_keras = build("dense")
    by_keras.get_layer("logits").quantize("int8")
    for scheme in ("int8", "int8_dynamic"):
        with pytest.raises(KpipeError, match="Keras has quantized it to int8"):
            kpipe.quantize(by_keras, scheme, calibration=x if scheme == "int8" else None)
    with pytest.raises(KpipeError, match=r"Keras has quantized layer '.*' to int8"):
        kpipe.export(by_keras, "never.onnx")
    with pytest.raises(KpipeError, match="quantized already"):
        kpipe.quantize(quantized("dense")[1], calibration=x)
    with pytest.raises(KpipeError, match="not quantized"):
        bake(build("dense"))


@pytest.mark.parametrize("join", [L.Concatenate(), L.Minimum()], ids=["concatenate", "minimum"])
def test_tokens_that_are_merged_stay_whole_numbers(join, tmp_path):
    # Keras says of both that they give floats, and gives whole numbers.
    keras.utils.set_random_seed(0)
    a, b = (keras.Input((3,), dtype="int32") for _ in range(2))
    y = L.Flatten()(L.Embedding(9, 4)(join([a, b])))
    model = keras.Model([a, b], L.Dense(3)(y))
    tokens = [np.random.default_rng(place).integers(0, 9, (32, 3)).astype("int32") for place in range(2)]
    quantized = kpipe.quantize(model, calibration=tokens)
    expected = model.predict(tokens, verbose=0)
    assert np.abs(quantized.predict(tokens, verbose=0) - expected).max() < 0.05 * np.abs(expected).max()
    for suffix in ("tflite", "onnx"):
        assert kpipe.export(quantized, tmp_path / f"m.{suffix}", data=tokens).precision == "int8"


class Places(keras.Model):
    """Embeddings of the positions are called on a constant."""

    def __init__(self):
        super().__init__(name="places")
        self.words, self.places, self.head = L.Embedding(9, 4), L.Embedding(6, 4), L.Dense(3)

    def call(self, x):
        return self.head(self.words(x) + self.places(np.arange(6)))


@pytest.mark.parametrize("suffix", ["tflite", "onnx"])
def test_embeddings_of_positions_are_rounded(suffix, tmp_path):
    keras.utils.set_random_seed(0)
    model = kpipe.functionalize(Places(), keras.KerasTensor((None, 6), "int32"))
    tokens = np.random.default_rng(0).integers(0, 9, (32, 6)).astype("int32")
    quantized = kpipe.quantize(model, calibration=tokens, islands="refuse")
    expected = model.predict(tokens, verbose=0)
    assert 0 < np.abs(quantized.predict(tokens, verbose=0) - expected).max() < 0.05 * np.abs(expected).max()
    assert kpipe.export(quantized, tmp_path / f"m.{suffix}", data=tokens).precision == "int8"
