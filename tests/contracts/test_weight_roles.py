"""Every layer class of Keras: which of its weights are pruned, written by hand; then pruned in a fit."""

import inspect
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import pytest
from keras import layers as L

from kpipe.layers import KERNEL_ROLES, RULES, LayerFacts
from kpipe.projections import kernels
from kpipe.schedules import ConstantSparsity
from kpipe.unstructured import WeightPruning, find_targets

Make = Callable[[], keras.Model]


def headed(inputs: Any, x: Any) -> keras.Model:
    return keras.Model(inputs, L.Dense(3, name="head")(x))


def on(layer: Any, *shape: int, dtype: str = "float32") -> Make:
    """Give a model of the layer called "layer" between inputs of this shape and a dense "head"."""

    def make() -> keras.Model:
        x = keras.Input(shape, dtype=dtype)
        return headed(x, layer()(x))

    return make


def attending(layer: Any, *, listed: bool = False) -> Make:
    def make() -> keras.Model:
        x = keras.Input((4, 5))
        return headed(x, layer()([x, x]) if listed else layer()(x, x))

    return make


def there_and_back() -> keras.Model:
    tokens, layer = keras.Input((4,), dtype="int32"), L.ReversibleEmbedding(6, 5, tie_weights=False, name="layer")
    return headed(tokens, layer(layer(tokens), reverse=True))


class Cell(L.Layer):
    """A recurrent cell of one's own, which says by itself what is to be pruned."""

    def __init__(self, **kwargs: Any):
        super().__init__(**kwargs)
        self.state_size = self.output_size = 4

    def build(self, shape: Any) -> None:
        self.mixing = self.add_weight(shape=(shape[-1], 4), name="mixing")
        self.decay = self.add_weight(shape=(4,), name="decay")

    def call(self, x: Any, states: Any) -> Any:
        out = keras.ops.tanh(x @ self.mixing + states[0] * self.decay)
        return out, [out]

    def get_prunable_weights(self) -> list[keras.Variable]:
        return [self.mixing]


KERNEL, CELL = ("kernel",), ("kernel", "recurrent_kernel")
ATTENTION = tuple(f"{part}/kernel" for part in ("query", "key", "value", "attention_output"))

PRUNED: dict[type, tuple[Make, tuple[str, ...]]] = {
    L.Dense: (on(lambda: L.Dense(4, name="layer"), 5), KERNEL),
    L.EinsumDense: (on(lambda: L.EinsumDense("abc,cde->abde", (4, 2, 3), name="layer"), 4, 5), KERNEL),
    L.Conv1D: (on(lambda: L.Conv1D(4, 3, name="layer"), 6, 5), KERNEL),
    L.Conv2D: (on(lambda: L.Conv2D(4, 3, groups=2, name="layer"), 4, 4, 6), KERNEL),
    L.Conv3D: (on(lambda: L.Conv3D(4, 2, name="layer"), 3, 3, 3, 5), KERNEL),
    L.Conv1DTranspose: (on(lambda: L.Conv1DTranspose(4, 3, name="layer"), 6, 5), KERNEL),
    L.Conv2DTranspose: (on(lambda: L.Conv2DTranspose(4, 3, name="layer"), 4, 4, 5), KERNEL),
    L.Conv3DTranspose: (on(lambda: L.Conv3DTranspose(4, 2, name="layer"), 3, 3, 3, 5), KERNEL),
    L.DepthwiseConv1D: (on(lambda: L.DepthwiseConv1D(3, name="layer"), 6, 5), ()),
    L.DepthwiseConv2D: (on(lambda: L.DepthwiseConv2D(3, name="layer"), 4, 4, 5), ()),
    L.SeparableConv1D: (on(lambda: L.SeparableConv1D(4, 3, name="layer"), 6, 5), ("pointwise_kernel",)),
    L.SeparableConv2D: (on(lambda: L.SeparableConv2D(4, 3, name="layer"), 4, 4, 5), ("pointwise_kernel",)),
    L.Embedding: (on(lambda: L.Embedding(6, 5, name="layer"), 4, dtype="int32"), ("embeddings",)),
    L.ReversibleEmbedding: (there_and_back, ("embeddings", "reverse_embeddings")),
    L.SimpleRNN: (on(lambda: L.SimpleRNN(4, name="layer"), 3, 5), tuple(f"simple_rnn_cell/{name}" for name in CELL)),
    L.LSTM: (on(lambda: L.LSTM(4, name="layer"), 3, 5), tuple(f"lstm_cell/{name}" for name in CELL)),
    L.GRU: (on(lambda: L.GRU(4, name="layer"), 3, 5), tuple(f"gru_cell/{name}" for name in CELL)),
    L.SimpleRNNCell: (on(lambda: L.RNN(L.SimpleRNNCell(4, name="layer")), 3, 5), CELL),
    L.LSTMCell: (on(lambda: L.RNN(L.LSTMCell(4, name="layer")), 3, 5), CELL),
    L.GRUCell: (on(lambda: L.RNN(L.GRUCell(4, reset_after=False, name="layer")), 3, 5), CELL),
    L.RNN: (on(lambda: L.RNN(Cell(name="cell"), name="layer"), 3, 5), ("cell/mixing",)),
    L.StackedRNNCells: (
        on(lambda: L.RNN(L.StackedRNNCells([L.GRUCell(4, name="a"), Cell(name="b")], name="layer")), 3, 5),
        ("a/kernel", "a/recurrent_kernel", "b/mixing"),
    ),
    **{
        cls: (
            on(lambda cls=cls: cls(4, 2, name="layer"), 3, *(3,) * rank, 5),
            tuple(f"conv_lstm_cell/{name}" for name in CELL),
        )
        for rank, cls in enumerate((L.ConvLSTM1D, L.ConvLSTM2D, L.ConvLSTM3D), 1)
    },
    L.Bidirectional: (
        on(lambda: L.Bidirectional(L.GRU(4, name="gru"), name="layer"), 3, 5),
        tuple(f"{way}_gru/gru_cell/{name}" for way in ("forward", "backward") for name in CELL),
    ),
    L.TimeDistributed: (
        on(lambda: L.TimeDistributed(L.Dense(4, name="inner"), name="layer"), 3, 5),
        ("inner/kernel",),
    ),
    L.MultiHeadAttention: (attending(lambda: L.MultiHeadAttention(2, 3, name="layer")), ATTENTION),
    L.GroupQueryAttention: (attending(lambda: L.GroupQueryAttention(3, 4, 2, name="layer")), ATTENTION),
    L.Attention: (
        attending(lambda: L.Attention(use_scale=True, score_mode="concat", name="layer"), listed=True),
        (),
    ),
    L.AdditiveAttention: (attending(lambda: L.AdditiveAttention(name="layer"), listed=True), ()),
    L.SpectralNormalization: (
        on(lambda: L.SpectralNormalization(L.Conv2D(4, 2, name="inner"), name="layer"), 4, 4, 5),
        ("inner/kernel",),
    ),
    L.BatchNormalization: (on(lambda: L.BatchNormalization(renorm=True, name="layer"), 5), ()),
    L.LayerNormalization: (on(lambda: L.LayerNormalization(name="layer"), 4, 5), ()),
    L.GroupNormalization: (on(lambda: L.GroupNormalization(2, name="layer"), 4, 6), ()),
    L.RMSNormalization: (on(lambda: L.RMSNormalization(name="layer"), 4, 5), ()),
    L.Normalization: (on(lambda: L.Normalization(name="layer"), 5), ()),
    L.PReLU: (on(lambda: L.PReLU(name="layer"), 4, 4, 5), ()),
    L.STFTSpectrogram: (on(lambda: L.STFTSpectrogram("psd", 4, name="layer"), 16, 2), ()),
}
"""Class -> a model of it, and the ends of the paths of what is pruned in it when nothing else is said."""

ON_REQUEST: dict[type, tuple[str, ...]] = {
    L.DepthwiseConv1D: ("kernel",),
    L.DepthwiseConv2D: ("kernel",),
    L.SeparableConv1D: ("depthwise_kernel",),
    L.SeparableConv2D: ("depthwise_kernel",),
}
"""What is pruned too when every role of a kernel is asked for."""

FOREIGN = {L.TFSMLayer, L.JaxLayer, L.FlaxLayer, L.TorchModuleWrapper}
"""Their variables are those of another library: none has a role."""

WEIGHTLESS = {
    *(L.Layer, L.Wrapper, L.InputLayer, L.Identity, L.Lambda, L.Masking, L.Pipeline),
    *(L.Activation, L.ReLU, L.LeakyReLU, L.ELU, L.Softmax, L.ActivityRegularization, L.UnitNormalization),
    *(L.Add, L.Average, L.Concatenate, L.Dot, L.Maximum, L.Minimum, L.Multiply, L.Subtract),
    *(L.Dropout, L.AlphaDropout, L.GaussianDropout, L.GaussianNoise),
    *(L.SpatialDropout1D, L.SpatialDropout2D, L.SpatialDropout3D),
    *(L.MaxPooling1D, L.MaxPooling2D, L.MaxPooling3D, L.AveragePooling1D, L.AveragePooling2D, L.AveragePooling3D),
    *(L.GlobalMaxPooling1D, L.GlobalMaxPooling2D, L.GlobalMaxPooling3D),
    *(L.GlobalAveragePooling1D, L.GlobalAveragePooling2D, L.GlobalAveragePooling3D),
    *(L.AdaptiveMaxPooling1D, L.AdaptiveMaxPooling2D, L.AdaptiveMaxPooling3D),
    *(L.AdaptiveAveragePooling1D, L.AdaptiveAveragePooling2D, L.AdaptiveAveragePooling3D),
    *(L.Flatten, L.Permute, L.RepeatVector, L.Reshape, L.Rescaling, L.Resizing, L.CenterCrop),
    *(L.Cropping1D, L.Cropping2D, L.Cropping3D, L.UpSampling1D, L.UpSampling2D, L.UpSampling3D),
    *(L.ZeroPadding1D, L.ZeroPadding2D, L.ZeroPadding3D),
    *(L.CategoryEncoding, L.Discretization, L.HashedCrossing, L.Hashing, L.IntegerLookup, L.StringLookup),
    *(L.TextVectorization, L.MelSpectrogram, L.MaxNumBoundingBoxes),
    *(L.AugMix, L.AutoContrast, L.ContrastLimitedAdaptiveHistogramEqualization, L.CutMix, L.Equalization, L.MixUp),
    *(L.RandAugment, L.RandomBrightness, L.RandomColorDegeneration, L.RandomColorJitter, L.RandomContrast),
    *(L.RandomCrop, L.RandomElasticTransform, L.RandomErasing, L.RandomFlip, L.RandomGaussianBlur, L.RandomGrayscale),
    *(L.RandomHue, L.RandomInvert, L.RandomPerspective, L.RandomPosterization, L.RandomRotation, L.RandomSaturation),
    *(L.RandomSharpness, L.RandomShear, L.RandomTranslation, L.RandomZoom, L.Solarization),
}


def exported() -> set[type]:
    found = (getattr(L, name) for name in dir(L))
    return {cls for cls in found if inspect.isclass(cls) and issubclass(cls, L.Layer)}


def adds_weights(cls: type) -> bool:
    """Say whether a class, or one above it but `Layer` itself, adds a weight in its source."""
    above = [one for one in cls.__mro__ if one is not L.Layer and one.__module__.startswith("keras.src.layers.")]
    return any("add_weight(" in inspect.getsource(one) for one in above)


def test_every_layer_of_keras_is_described():
    """A layer that a new Keras brings stands in none of these until somebody writes it down."""
    assert exported() == set(PRUNED) | FOREIGN | WEIGHTLESS
    assert not set(PRUNED) & (FOREIGN | WEIGHTLESS)


@pytest.mark.parametrize("cls", sorted(WEIGHTLESS, key=lambda cls: cls.__name__), ids=lambda cls: cls.__name__)
def test_a_layer_without_weights_has_none(cls):
    assert not adds_weights(cls)


def test_a_layer_with_weights_would_be_found():
    assert adds_weights(L.Dense) and adds_weights(L.Conv2D) and adds_weights(type("Mine", (L.Dense,), {}))


def seeded(cls: type) -> keras.Model:
    keras.utils.set_random_seed(0)
    return PRUNED[cls][0]()


def ends(paths: Any) -> set[str]:
    """Give what comes after the name of the layer, in the paths of the layer's weights."""
    return {path.split("layer/", 1)[1] for path in paths if "layer/" in path}


def check_choice(model: keras.Model, cls: type) -> None:
    """Fail unless exactly what is written down is chosen, and every weight has a role."""
    expected, asked_for = set(PRUNED[cls][1]), set(ON_REQUEST.get(cls, ()))
    targets, skipped = find_targets(model)
    assert ends(target.path for target in targets) == expected
    assert targets[-1].path.endswith("head/kernel") and len(targets) == len(expected) + 1
    assert not [row for row in skipped if "knows no role" in row.reason or (row.shape == () and "/" not in row.path)]
    targets, _ = find_targets(model, roles=KERNEL_ROLES)
    assert ends(target.path for target in targets) == expected | asked_for
    assert {id(variable) for variable in kernels(model)} == {id(target.variable) for target in targets}


@pytest.mark.parametrize("cls", PRUNED, ids=lambda cls: cls.__name__)
def test_what_is_pruned_is_what_is_written_down(cls):
    check_choice(seeded(cls), cls)


@pytest.mark.parametrize(
    ("cls", "facts"),
    [
        (L.PReLU, LayerFacts(roles={"alpha": "kernel"})),
        (L.Embedding, LayerFacts(roles={})),
        (L.GRUCell, LayerFacts(roles={"kernel": "kernel", "bias": "bias"})),
        (L.DepthwiseConv2D, LayerFacts(roles={"kernel": "kernel", "bias": "bias"})),
    ],
)
def test_a_wrong_role_is_caught(cls, facts, monkeypatch):
    monkeypatch.setitem(RULES, cls, facts)
    with pytest.raises(AssertionError):
        check_choice(seeded(cls), cls)


def data_for(model: keras.Model, count: int = 4) -> tuple[Any, np.ndarray]:
    rng, given = np.random.default_rng(0), model.inputs[0]
    shape = (count, *given.shape[1:])
    x = rng.integers(0, 6, shape) if given.dtype == "int32" else rng.normal(size=shape).astype("float32")
    return x, np.zeros((count, *model.outputs[0].shape[1:]), "float32")


@pytest.mark.sweep(4)
@pytest.mark.parametrize("cls", PRUNED, ids=lambda cls: cls.__name__)
def test_half_of_every_target_is_zero_after_a_fit(cls):
    model = seeded(cls)
    model.compile(keras.optimizers.SGD(0.01, momentum=0.9), "mse", run_eagerly=True)
    prune = WeightPruning(ConstantSparsity(0.5, 0))
    model.fit(*data_for(model), batch_size=2, verbose=0, callbacks=[prune])
    targets, skipped = find_targets(model)
    for target in targets:
        value = target.variable.numpy()
        assert value.size - np.count_nonzero(value) == round(0.5 * value.size), target.path
    assert [row.path for row in prune.report().pruned] == [target.path for target in targets]
    assert {row.path for row in prune.report().skipped} == {row.path for row in skipped}
