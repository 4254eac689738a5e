"""Models of Keras 2 with classes and functions of one's own, with states, in half precision, or not to be converted."""

import numpy as np

from tests.legacy.old_writing import saved_as


@saved_as("h5", "keras", "tf")
def own_classes():
    """A layer, an activation and the function of a Lambda of the user's own."""
    from tf_keras import Sequential
    from tf_keras import layers as L

    from tests.legacy import old_layers

    return Sequential(
        [
            L.Dense(4, old_layers.squash, input_shape=(3,), kernel_constraint=old_layers.Clip(7.0)),
            old_layers.Scale(2.0, name="scale"),
            old_layers.Shift(name="shift"),
            L.Lambda(old_layers.double, arguments={"times": 3.0}, name="thrice"),
        ]
    )


@saved_as("h5", "tf")
def registered():
    """An activation that is registered, and nothing else of the user's own."""
    from tf_keras import Sequential
    from tf_keras import layers as L

    from tests.legacy import old_layers

    return Sequential([L.Dense(4, old_layers.bent, input_shape=(3,))])


@saved_as("h5")
def distance():
    """A Lambda that says what shape it gives, whose code needs its module."""
    from tf_keras import Input, Model
    from tf_keras import layers as L

    from tests.legacy import old_layers

    pair = [Input((3,), name="one"), Input((3,), name="other")]
    return Model(pair, L.Lambda(old_layers.distance, lambda shapes: shapes[0], name="distance")(pair))


@saved_as("h5", "tf")
def masked_lambda():
    """A Lambda whose mask is code beside its function."""
    from tf_keras import Input, Model
    from tf_keras import layers as L

    from tests.legacy import old_layers

    steps = Input((5, 2), name="steps")
    doubled = L.Lambda(old_layers.double, mask=lambda inputs, mask: mask, name="masked")(L.Masking()(steps))
    return Model(steps, L.SimpleRNN(3)(doubled))


@saved_as("h5")
def residual():
    """A cell in whose wrapper a function is kept as code."""
    import tensorflow as tf
    from tf_keras import Sequential
    from tf_keras import layers as L

    cell = tf.nn.RNNCellResidualWrapper(L.GRUCell(3), residual_fn=lambda inputs, outputs: inputs + outputs)
    return Sequential([L.RNN(cell, input_shape=(5, 3))])


@saved_as("h5")
def called_at_inference():
    """A base that is kept at inference while what stands on it is trained."""
    from tf_keras import Input, Model, Sequential
    from tf_keras import layers as L

    base = Sequential([L.Dense(4, input_shape=(4,)), L.BatchNormalization()], name="base")
    x = Input((4,))
    return Model(x, L.Dense(2)(base(x, training=False)))


@saved_as("h5")
def called_in_training():
    from tf_keras import Input, Model
    from tf_keras import layers as L

    x = Input((4,))
    return Model(x, L.Dropout(0.5, name="always")(x, training=True))


@saved_as("h5")
def stateful():
    from tf_keras import Input, Model
    from tf_keras import layers as L

    steps = Input(batch_shape=(3, 5, 2), name="steps")
    return Model(steps, L.GRU(3, stateful=True)(L.LSTM(4, stateful=True, return_sequences=True)(steps)))


@saved_as("h5")
def half_precision():
    """A part in half precision, and parts that it has no part in."""
    import tensorflow as tf
    from tf_keras import Input, Model
    from tf_keras import layers as L

    x, y = Input((16,)), Input((32,))
    inner = Model(y, L.Dense(8, "relu", dtype="mixed_float16", name="half")(y), name="inner")
    before = L.Dense(32, "relu", name="before")(x)
    cast = tf.cast(tf.cast(before, "float16"), "float32")
    return Model(x, [L.Dense(3, name="after")(inner(before)), L.Dense(2, name="beside")(before), cast])


@saved_as("h5")
def unknown_to_keras_3():
    from tf_keras import Sequential
    from tf_keras import layers as L

    return Sequential([L.LocallyConnected1D(2, 3, name="local", input_shape=(6, 2))])


@saved_as("h5")
def unknown_operation():
    import tensorflow as tf
    from tf_keras import Input, Model

    x = Input((4,))
    return Model(x, tf.math.bessel_i0(x))


@saved_as("tf")
def subclassed():
    import tf_keras

    class Own(tf_keras.Model):
        def __init__(self):
            super().__init__()
            self.dense = tf_keras.layers.Dense(2)

        def call(self, x):
            return self.dense(x)

    model = Own()
    model(np.zeros((1, 3), "float32"))
    return model
