"""Counts against closed forms."""

import keras
import numpy as np
import pytest
from keras import layers as L

from kpipe.errors import KpipeError
from kpipe.graph import trace
from kpipe.measure import measure
from kpipe.quantize import quantize
from tests.models import ZOO, build, samples


@pytest.mark.parametrize("name", ZOO)
def test_totals_are_those_of_keras(name):
    model = build(name)
    counts = measure(model)
    assert counts.params == model.count_params()
    assert counts.bytes == 4 * model.count_params()
    assert counts.nonzeros == sum(int(np.count_nonzero(w)) for w in model.get_weights())


def test_macs_per_layer_are_those_of_the_formulas():
    rows = {row.layer: row for row in measure(build("depthwise")).rows}
    assert rows["stem"].macs == 64 * 9 * 3 * 8
    assert rows["dw"].macs == 64 * 9 * 16  # every output channel sees one input channel
    assert rows["pw"].macs == 64 * 16 * 12
    assert rows["sep"].macs == 64 * (9 * 12 + 12 * 10)
    assert rows["stem_bn"].macs == 0  # folded into the convolution
    grouped = {row.layer: row for row in measure(build("grouped")).rows}
    assert grouped["grouped"].macs == 64 * 9 * (12 // 3) * 18
    assert grouped["channelwise"].macs == 64 * 9 * 18
    shared = {row.layer: row for row in measure(build("siamese")).rows}
    assert shared["shared"].macs == 2 * 10 * 7  # called twice


@pytest.mark.slow
def test_vgg16_at_224_has_its_published_count():
    """Simonyan and Zisserman's network: 138,357,544 parameters and 15.47 G multiply-accumulates."""
    x = image = keras.Input((224, 224, 3))
    for filters, convolutions in ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3)):
        for _ in range(convolutions):
            x = L.Conv2D(filters, 3, padding="same", kernel_initializer="zeros")(x)
        x = L.MaxPooling2D(2)(x)
    x = L.Flatten()(x)
    for units in (4096, 4096, 1000):
        x = L.Dense(units, kernel_initializer="zeros")(x)
    counts = measure(keras.Model(image, x))
    assert counts.params == 138_357_544
    assert counts.macs == pytest.approx(15.47e9, rel=0.001)
    assert counts.sparsity == 1.0


def test_sparsity_counts_kernels_only():
    model = build("dense")
    kernel = model.get_layer("hidden1").kernel
    value = np.asarray(kernel).copy()
    value.reshape(-1)[:48] = 0
    kernel.assign(value)
    counts = measure(model)
    assert counts.rows[0].sparsity == pytest.approx(48 / (12 * 16))
    assert counts.sparsity == pytest.approx(48 / (12 * 16 + 16 * 10 + 10 * 4))


class Two(keras.Model):
    def __init__(self):
        super().__init__(name="two")
        self.first, self.second = L.Dense(6, name="first"), L.Dense(2, name="second")

    def call(self, x):
        return self.second(self.first(x))


def test_what_is_not_known_is_said():
    x = keras.Input((None, 4))  # steps of an unknown number
    unknown = measure(keras.Model(x, L.Dense(2, name="fc")(L.LSTM(3, name="lstm")(x))))
    assert unknown.macs is None and "?" in str(unknown)
    assert {row.layer: row.macs for row in unknown.rows} == {"lstm": None, "fc": 6}
    subclassed = Two()
    subclassed(np.zeros((1, 4), "float32"))
    counts = measure(subclassed)
    assert counts.params == 44 and counts.macs is None
    open_size = keras.Input((None, None, 3))
    assert measure(keras.Model(open_size, L.Conv2D(4, 3)(open_size))).macs is None


def test_the_table_shows_every_layer_and_the_total():
    text = str(measure(build("conv_bn")))
    assert [line.split()[0] for line in text.splitlines()[1:-2]] == ["conv1", "bn1", "conv2", "fc", "logits"]
    assert text.splitlines()[-1].split()[:3] == ["total", "3,901", "3,901"]


def test_a_quantized_model_is_counted_as_it_will_be_written():
    model = build("residual")
    quantized = quantize(model, calibration=samples(model)[0])
    counts, before = measure(quantized), measure(model)
    assert {row.layer for row in counts.rows} <= {row.layer for row in before.rows} | {
        "stem_stem_bn",
        "a_a_bn",
        "b_b_bn",
    }
    assert counts.macs == before.macs
    # BatchNorm's four vectors of 8, 10 and 8 channels are folded away; the convolutions had a bias already
    assert counts.params == before.params - 4 * (8 + 10 + 8)


def test_bad_input():
    with pytest.raises(KpipeError, match="Expected a Keras model"):
        measure([1])
    with pytest.raises(KpipeError, match="not built"):
        measure(keras.Sequential([L.Dense(3)]))


class Mixed(keras.Model):
    """Layers inside layers, and a weight of the model's own."""

    def __init__(self):
        super().__init__(name="mixed")
        self.embed, self.attend = L.Embedding(7, 5, name="embed"), L.MultiHeadAttention(2, 3, name="attend")
        self.read = L.Bidirectional(L.LSTM(4, name="lstm"), name="read")
        self.gain = self.add_weight(shape=(1,), initializer="ones", name="gain")

    def call(self, tokens):
        x = self.embed(tokens)
        return self.read(self.attend(x, x)) * self.gain


def test_layers_inside_layers_are_counted_once():
    """Kernels: 7·5 tokens; 3 projections 5 → 2·3 and one back; 2 cells 5 → 4·4 and 4 → 4·4.

    At each of 6 steps all are multiplied but the tokens, and scores of 2·3 between each two steps, then their sum.
    """
    kernels = 7 * 5 + 4 * 5 * 6 + 2 * (5 * 16 + 4 * 16)
    mixed = Mixed()
    mixed(np.ones((2, 6), "int32"))
    tokens = keras.Input((6,), dtype="int32")
    model = keras.Model(tokens, mixed.read(mixed.attend(mixed.embed(tokens), mixed.embed(tokens))))
    for one, macs in (mixed, None), (model, 6 * (kernels - 7 * 5) + 2 * 6 * 6 * 2 * 3):
        counts = measure(one)
        assert counts.params == one.count_params() and counts.macs == macs
        assert sum(row.kernel_params for row in counts.rows) == kernels
    cell = mixed.read.forward_layer.cell
    cell.recurrent_kernel.assign(np.zeros((4, 16)))
    assert measure(model).sparsity == pytest.approx(64 / kernels)
    assert measure(mixed).sparsity == pytest.approx(64 / kernels)
    channels = {row.layer: row.channels for row in measure(mixed).rows}
    assert channels["read/forward_lstm/lstm_cell"] == 4 and channels["attend/attention_output"] == 5


def test_what_multiplies_nothing_costs_no_macs():
    x = keras.Input((4, 4, 3))
    net = keras.Model(x, L.Dense(2, name="fc")(L.Flatten()(L.LayerNormalization()(L.PReLU()(L.Conv2D(5, 1)(x))))))
    assert measure(net).macs == 16 * 3 * 5 + 80 * 2


def test_products_of_operations_count_as_those_of_attention_do():
    x = keras.Input((5, 8))
    net = keras.Model(x, keras.ops.matmul(L.Dense(4)(x), keras.ops.transpose(L.Dense(4)(x), (0, 2, 1))))
    counts = measure(net)
    assert counts.macs == trace(net).macs() == 2 * 5 * 8 * 4 + 5 * 5 * 4
    assert [(row.kind, row.params, row.channels) for row in counts.rows[2:]] == [("Matmul", 0, None)]
    steps = keras.Input((None, 8))
    assert measure(keras.Model(steps, keras.ops.matmul(steps, keras.ops.transpose(steps, (0, 2, 1))))).macs is None
