"""A script as users of TFMOT write them. It runs on tf_keras with TFMOT, and on Keras 3 once its import is changed."""

import numpy as np
import tensorflow as tf
import tensorflow_model_optimization as tfmot

keras = tf.keras
prune_low_magnitude = tfmot.sparsity.keras.prune_low_magnitude


class Scale(keras.layers.Layer, tfmot.sparsity.keras.PrunableLayer):
    """A layer of one's own that says what is pruned."""

    def build(self, input_shape):
        self.factor = self.add_weight(shape=(input_shape[-1], input_shape[-1]), name="factor")
        self.built = True

    def call(self, inputs):
        return tf.matmul(inputs, self.factor)

    def get_prunable_weights(self):
        return [self.factor]


class EveryThird(tfmot.sparsity.keras.PruningSchedule):
    """A schedule of one's own."""

    def __init__(self, sparsity):
        self.sparsity = sparsity

    def __call__(self, step):
        return self._should_prune_in_step(step, 3, -1, 3), tf.constant(self.sparsity, tf.float32)

    def get_config(self):
        return {"class_name": "EveryThird", "config": {"sparsity": self.sparsity}}


def filled(layer, seed):
    """Give a layer weights that both versions of Keras start with."""
    rng = np.random.default_rng(seed)
    layer.set_weights([rng.normal(size=weight.shape).astype("float32") for weight in layer.get_weights()])


def trained(rate):
    """Prune a model while an optimizer with momentum moves it at a rate."""
    ramp = tfmot.sparsity.keras.PolynomialDecay(
        initial_sparsity=0.2, final_sparsity=0.75, begin_step=1, end_step=9, power=3, frequency=4
    )
    model = keras.Sequential(
        [
            keras.layers.InputLayer((6, 6, 4)),
            prune_low_magnitude(keras.layers.Conv2D(8, 3, activation="relu"), pruning_schedule=ramp),
            keras.layers.Flatten(),
            prune_low_magnitude(keras.layers.Dense(16), pruning_schedule=ramp, block_size=(2, 2)),
            prune_low_magnitude(Scale(), pruning_schedule=EveryThird(0.5)),
            prune_low_magnitude(
                keras.layers.Dense(8),
                pruning_schedule=tfmot.sparsity.keras.ConstantSparsity(0.5, begin_step=1, frequency=1),
                sparsity_m_by_n=(2, 4),
            ),
            keras.layers.Dense(2),
        ]
    )
    for seed, layer in enumerate(layer for layer in model.layers if layer.get_weights()):
        filled(layer, seed)
    model.compile(optimizer=keras.optimizers.Adam(rate), loss="mse")
    data = np.ones((10, 6, 6, 4), "float32"), np.ones((10, 2), "float32")
    callbacks = [tfmot.sparsity.keras.UpdatePruningStep()]
    model.fit(*data, batch_size=1, epochs=1, verbose=0, callbacks=callbacks)
    return model


def run(folder):
    """Prune a model that stands still, save and load it, strip it; give the kernels that are left."""
    model = trained(0.0)
    model.save(folder + "/model.h5", include_optimizer=False)
    with (
        tfmot.sparsity.keras.prune_scope(),
        keras.utils.custom_object_scope({"Scale": Scale, "EveryThird": EveryThird}),
    ):
        model = keras.models.load_model(folder + "/model.h5", compile=False)

    model = tfmot.sparsity.keras.strip_pruning(model)
    assert not any("prune" in layer.name for layer in model.layers)
    return [weight for weight in model.get_weights() if weight.ndim > 1]
