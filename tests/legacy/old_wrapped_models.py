"""Models of Keras 2 in TFMOT's wrappers."""

import numpy as np

from tests.legacy.old_writing import saved_as, shaken

DROPPED = np.random.default_rng(4).random((3, 3, 3, 8)) < 0.5
"""Where the kernel of a convolution is zero before it is clustered."""


def small_net():
    from tf_keras import Input, Sequential
    from tf_keras import layers as L

    return shaken(
        Sequential(
            [
                Input((8, 8, 3)),
                L.Conv2D(8, 3, name="conv", padding="same"),
                L.BatchNormalization(),
                L.ReLU(),
                L.SeparableConv2D(8, 3, name="separable"),
                L.Flatten(),
                L.Dense(6, "relu"),
                L.Dense(3, "softmax", name="classes"),
            ]
        )
    )


def _residual_net():
    from tf_keras import Input, Model
    from tf_keras import layers as L

    image = Input((8, 8, 3), name="image")
    x = L.BatchNormalization()(L.Conv2D(4, 3, padding="same", name="first")(image))
    x = L.Add()([L.Conv2D(4, 1, activation="relu", name="second")(L.ReLU(6.0)(x)), x])
    return shaken(Model(image, L.Dense(3, "tanh", name="last")(L.GlobalAveragePooling2D()(x))))


def trained(model):
    """Train a little, so that masks and codebooks are what training makes them."""
    import tensorflow_model_optimization as tfmot

    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(16, 8, 8, 3)).astype("float32"), rng.integers(0, 3, 16)
    model.compile("adam", "sparse_categorical_crossentropy", run_eagerly=True)
    model.fit(x, y, batch_size=8, verbose=0, callbacks=[tfmot.sparsity.keras.UpdatePruningStep()])
    return model


@saved_as("h5", "keras", as_built=True)
def pruned():
    """Pruned, and dense again by a last update after which no mask has been applied."""
    import tensorflow_model_optimization as tfmot

    schedule = tfmot.sparsity.keras.ConstantSparsity(0.75, 0, frequency=1)
    model = trained(tfmot.sparsity.keras.prune_low_magnitude(small_net(), schedule))
    for layer in model.layers:
        layer.layer.set_weights([weight + 0.01 for weight in layer.layer.get_weights()])
    return model


@saved_as("keras", as_built=True)
def pruned_after_masks():
    """Pruned layers behind an embedding whose mask the wrappers do not pass on."""
    import tensorflow_model_optimization as tfmot
    from tf_keras import Input, Model
    from tf_keras import layers as L

    words = Input((6,), dtype="int32", name="words")
    x = L.SimpleRNN(3)(L.Embedding(9, 4, mask_zero=True)(words))
    return tfmot.sparsity.keras.prune_low_magnitude(Model(words, L.Dense(2)(x)))


@saved_as("h5", as_built=True)
def clustered():
    import tensorflow_model_optimization as tfmot

    linear = tfmot.clustering.keras.CentroidInitialization.LINEAR
    return trained(tfmot.clustering.keras.cluster_weights(small_net(), 4, linear))


@saved_as("h5", as_built=True)
def clustered_sparse():
    """Clustered, with the zeros of pruned weights among the clusters, which are found anew before it is saved."""
    model = clustered_with_zeros(small_net())
    model(np.zeros((1, 8, 8, 3), "float32"))
    return model


@saved_as("h5", as_built=True)
def clustered_midway():
    """The same, saved right after an update of the weights, here by hand."""
    from tf_keras import Sequential
    from tf_keras import layers as L

    layers = [L.Conv2D(8, 3, name="conv", input_shape=(8, 8, 3)), L.GlobalMaxPooling2D(), L.Dense(3, "softmax")]
    model = clustered_with_zeros(Sequential(layers))
    model.layers[0].original_clusterable_weights["kernel"].assign_add(np.full(DROPPED.shape, 0.2))
    model.layers[0].cluster_centroids["kernel"].assign_add(np.full(6, 1e-3))
    return model


def clustered_with_zeros(net, **options):
    import tensorflow_model_optimization as tfmot
    from tensorflow_model_optimization.python.core.clustering.keras.experimental.cluster import cluster_weights

    kernel = net.get_layer("conv").kernel
    kernel.assign(np.where(DROPPED, 0.0, kernel))
    linear = tfmot.clustering.keras.CentroidInitialization.LINEAR
    return trained(cluster_weights(net, 6, linear, preserve_sparsity=True, **options))


@saved_as("h5", as_built=True)
def quantized():
    import tensorflow_model_optimization as tfmot

    plain = small_net()
    return tfmot.quantization.keras.quantize_model(plain), plain


@saved_as("keras", as_built=True)
def quantized_graph():
    import tensorflow_model_optimization as tfmot

    plain = _residual_net()
    return tfmot.quantization.keras.quantize_model(plain), plain
