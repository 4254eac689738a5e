"""Operations of TensorFlow and what stands for them, on the same values; the oracle is TensorFlow."""

import numpy as np
import pytest
import tensorflow as tf
from keras import ops

from kpipe.errors import KpipeError
from kpipe.legacy.operations import OPERATIONS, operation_named
from kpipe.legacy.operations.arithmetic import OF_ONE, OF_TWO, REDUCING

RNG = np.random.default_rng(0)
X = RNG.uniform(-0.9, 0.9, (2, 4, 6)).astype(np.float32)
Y = RNG.uniform(0.1, 0.9, (2, 4, 6)).astype(np.float32)
ROWS = RNG.normal(size=(2, 8, 8, 4)).astype(np.float32)
ABOVE_ONE = {"math.acosh": Y + 1.0, "math.log": Y, "math.log1p": Y, "math.rsqrt": Y, "math.sqrt": Y}
ODD = np.array([[0.0, np.inf, -np.inf, np.nan, 1.5, 2.5]], np.float32)
TRUE, OTHER = X > 0, Y > 0.5
ONE = {
    "math.is_finite": ODD,
    "math.is_inf": ODD,
    "math.is_nan": ODD,
    "math.logical_not": TRUE,
    "math.round": ODD[:, 4:],
}
WHOLE = np.array([[7, -7, 3], [5, 0, -4]], np.int32)
CASES = [
    *[(name, (ONE.get(name, ABOVE_ONE.get(name, X)),), {}) for name in OF_ONE],
    *[(name, (TRUE, OTHER) if "logical" in name else (X, Y), {}) for name in OF_TWO],
    *[(name, (TRUE if name.endswith(("all", "any")) else X,), {"axis": [1, 2], "keepdims": True}) for name in REDUCING],
    *[(name, (TRUE if name.endswith(("all", "any")) else X,), {}) for name in REDUCING],
    ("math.floormod", (WHOLE, np.int32(3)), {}),
    ("math.floordiv", (WHOLE, np.int32(2)), {}),
    ("math.add", (X, [1.0, 2.0, 3.0, 4.0, 5.0, 6.0]), {}),
    ("math.multiply", (2.0,), {"y": X}),
    ("__operators__.getitem", (X, (slice(None), slice(1, None, 2), None, Ellipsis, 0)), {}),
    ("__operators__.getitem", (X, 1), {}),
    ("broadcast_to", (X[:1], [3, 4, 6]), {}),
    ("cast", (X * 3, "int32"), {}),
    ("clip_by_value", (X, -0.1, 0.4), {}),
    ("compat.v1.gather", (X, [2, 0]), {"axis": 1}),
    ("compat.v1.pad", (X, [[0, 0], [1, 2], [0, 0]]), {"mode": "CONSTANT", "constant_values": 3.0}),
    ("pad", (X, [[0, 0], [1, 2], [0, 0]]), {"mode": "REFLECT"}),
    ("compat.v1.squeeze", (X[:, :1],), {"axis": [1]}),
    ("compat.v1.transpose", (X,), {"perm": [0, 2, 1]}),
    ("concat", ([X, Y], 1), {}),
    ("expand_dims", (X, 1), {}),
    ("gather", (X, [2, 0]), {"axis": -1}),
    ("identity", (X,), {}),
    ("image.resize", (ROWS, (5, 12)), {}),
    ("image.resize", (ROWS, (16, 16)), {"method": "nearest"}),
    ("image.resize", (ROWS, (16, 16)), {"method": "bicubic"}),
    ("linalg.matmul", (X, Y), {"transpose_b": True}),
    ("linalg.matmul", (X, Y), {"transpose_a": True}),
    ("math.add_n", ([X, Y, X],), {}),
    ("math.argmax", (X, -1), {}),
    ("math.argmin", (X,), {"axis": 1}),
    ("math.cumsum", (X, 1), {}),
    ("math.divide_no_nan", (X, np.where(Y > 0.5, Y, 0).astype(np.float32)), {}),
    ("math.l2_normalize", (X,), {"axis": -1}),
    ("math.squared_difference", (X, Y), {}),
    ("math.top_k", (X,), {"k": 2}),
    ("nn.bias_add", (X, np.arange(6, dtype=np.float32)), {}),
    ("nn.bias_add", (ROWS, np.arange(8, dtype=np.float32)), {"data_format": "NCHW"}),
    ("nn.depth_to_space", (ROWS, 2), {}),
    ("nn.gelu", (X,), {"approximate": True}),
    ("nn.gelu", (X,), {}),
    ("nn.leaky_relu", (X,), {"alpha": 0.3}),
    ("nn.log_softmax", (X,), {"axis": 1}),
    ("nn.softmax", (X,), {"axis": 1}),
    ("nn.space_to_depth", (ROWS, 2), {}),
    ("nn.swish", (X,), {"beta": 1.5}),
    ("norm", (X,), {"axis": 1}),
    ("one_hot", ([0, 2], 4), {"on_value": 2.0, "off_value": -1.0}),
    ("one_hot", ([0, 2], 4), {}),
    ("repeat", (X, 2), {"axis": 1}),
    ("reshape", (X, [-1, 12]), {}),
    ("reverse", (X,), {"axis": [1]}),
    ("shape", (X,), {}),
    ("slice", (X, [0, 1, 0], [-1, 2, 3]), {}),
    ("split", (X, 2), {"axis": -1}),
    ("split", (X, [1, 2, 3]), {"axis": -1}),
    ("stack", ([X, Y],), {"axis": 1}),
    ("strided_slice", (X, [0, 1, 5], [1, 3, 0], [1, 1, -2]), {"begin_mask": 1, "end_mask": 1}),
    ("strided_slice", (X, [1, 1], [2, 3]), {"shrink_axis_mask": 1}),
    ("tile", (X, [1, 2, 1]), {}),
    ("unstack", (X,), {"axis": 1}),
    ("where", (TRUE, X, Y), {}),
]


def tensors(values):
    return [tf.constant(value) if isinstance(value, np.ndarray) else value for value in values]


@pytest.mark.parametrize(("name", "args", "kwargs"), CASES, ids=[f"{n}:{case[0]}" for n, case in enumerate(CASES)])
def test_an_operation_gives_what_tensorflow_gives(name, args, kwargs):
    function = tf
    for part in name.split("."):
        function = getattr(function, part)
    expected = tf.nest.flatten(function(*tensors(args), **kwargs))
    got = tf.nest.flatten(operation_named(name, "layer")(*tensors(args), **kwargs))
    if name == "shape":
        expected = list(expected[0].numpy())
    assert len(got) == len(expected)
    for one, other in zip(got, expected, strict=True):
        np.testing.assert_allclose(np.asarray(one), np.asarray(other), rtol=1e-5, atol=1e-6)


def test_every_operation_is_tried():
    tried = {id(operation_named(name, "layer")) for name, _, _ in CASES}
    untried = [name for name in OPERATIONS if id(OPERATIONS[name]) not in tried]
    assert untried == ["keras.backend.batch_flatten"]  # TensorFlow has no such name


def test_a_batch_is_flattened():
    flat = OPERATIONS["keras.backend.batch_flatten"](ops.convert_to_tensor(X))
    np.testing.assert_array_equal(np.asarray(flat), X.reshape(2, 24))


def test_open_sizes_become_what_is_left():
    import keras

    x = keras.KerasTensor((None, 4, 6))
    shape = operation_named("compat.v1.shape", "layer")(x)
    size = operation_named("__operators__.getitem", "layer")(shape, 0)
    new = operation_named("stack", "layer")([size, 24])
    assert operation_named("reshape", "layer")(x, new).shape == (None, 24)
    with pytest.raises(KpipeError, match="more than one open size"):
        operation_named("reshape", "layer")(x, (None, 4, None))


def test_an_unknown_operation_is_named_with_its_layer():
    with pytest.raises(KpipeError, match=r"'tf.strange'.*tf\.math\.strange"):
        operation_named("math.strange", "tf.strange")


@pytest.mark.parametrize(
    ("name", "args", "kwargs"),
    [
        ("gather", (X, [0]), {"batch_dims": 1}),
        ("norm", (X,), {"ord": 1}),
        ("image.resize", (ROWS, (5, 5)), {"antialias": True}),
        ("linalg.matmul", (X, Y), {"adjoint_a": True}),
        ("strided_slice", (X, [0], [1]), {"new_axis_mask": 1}),
    ],
)
def test_what_would_change_the_result_is_not_passed_over(name, args, kwargs):
    with pytest.raises(TypeError):
        operation_named(name, "layer")(*args, **kwargs)
