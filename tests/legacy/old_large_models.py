"""Real architectures and rarer wrappers of Keras 2, written by tf_keras: `python old_large_models.py FOLDER`."""

import sys
from functools import partial

import numpy as np

from tests.legacy.old_wrapped_models import clustered_with_zeros, small_net, trained
from tests.legacy.old_writing import Builder, prepare, saved_as, write

MODELS: dict[str, Builder] = {}
SIZES = {
    "ConvNeXtTiny": 64,
    "DenseNet121": 64,
    "EfficientNetB0": 64,
    "EfficientNetV2B0": 64,
    "InceptionV3": 96,
    "MobileNet": 96,
    "MobileNetV2": 96,
    "MobileNetV3Small": 96,
    "NASNetMobile": 96,
    "RegNetX002": 64,
    "ResNet50V2": 64,
    "ResNetRS50": 64,
    "VGG16": 32,
    "Xception": 96,
}
"""Name in `tf_keras.applications` -> side of the images."""


def application(name: str):
    from tf_keras import applications

    shape = (SIZES[name], SIZES[name], 3)
    model = getattr(applications, name)(weights=None, input_shape=shape, include_top=False, pooling="avg")
    rng = np.random.default_rng(3)
    model.set_weights([_moved(rng, weight) for weight in model.get_weights()])
    return model


def _moved(rng, weight):
    """Move what is a vector: biases, scales, means and variances, but no kernels, for the values are to stay finite."""
    if weight.ndim != 1:
        return weight
    return (weight * rng.uniform(0.8, 1.2, weight.shape) + rng.uniform(0.0, 0.2, weight.shape)).astype(weight.dtype)


MODELS.update({name: Builder(("h5",), partial(application, name), as_built=True) for name in SIZES})


@saved_as("h5", as_built=True, among=MODELS)
def films():
    from tf_keras import Sequential
    from tf_keras import layers as L

    return Sequential([L.ConvLSTM2D(3, 3, input_shape=(4, 6, 6, 2), return_sequences=True), L.ConvLSTM2D(2, 2)])


@saved_as("tf", as_built=True, among=MODELS)
def pruned():
    import tensorflow_model_optimization as tfmot

    schedule = tfmot.sparsity.keras.ConstantSparsity(0.5, 0, frequency=1)
    return trained(tfmot.sparsity.keras.prune_low_magnitude(small_net(), schedule, sparsity_m_by_n=None))


def _attention():
    from tf_keras import Input, Model
    from tf_keras import layers as L

    steps = Input((6, 8), name="steps")
    return Model(steps, L.Dense(3)(L.Flatten()(L.MultiHeadAttention(2, 4, name="mha")(steps, steps))))


@saved_as("keras", "tf", as_built=True, among=MODELS)
def pruned_attention():
    import tensorflow_model_optimization as tfmot

    schedule = tfmot.sparsity.keras.ConstantSparsity(0.5, 0, frequency=1)
    return _fitted(tfmot.sparsity.keras.prune_low_magnitude(_attention(), schedule))


@saved_as("h5", "keras", as_built=True, among=MODELS)
def clustered_attention():
    import tensorflow_model_optimization as tfmot

    linear = tfmot.clustering.keras.CentroidInitialization.LINEAR
    return _fitted(tfmot.clustering.keras.cluster_weights(_attention(), 4, linear))


@saved_as("h5", as_built=True, among=MODELS)
def clustered_recurrent():
    import tensorflow_model_optimization as tfmot
    from tf_keras import Sequential
    from tf_keras import layers as L

    linear = tfmot.clustering.keras.CentroidInitialization.LINEAR
    plain = Sequential([L.GRU(4, input_shape=(6, 8)), L.Dense(3)])
    return _fitted(tfmot.clustering.keras.cluster_weights(plain, 4, linear))


@saved_as("h5", "keras", as_built=True, among=MODELS)
def clustered_by_channel():
    model = clustered_with_zeros(small_net(), cluster_per_channel=True)
    model(np.zeros((1, 8, 8, 3), "float32"))
    return model


def _fitted(model):
    import tensorflow_model_optimization as tfmot

    rng = np.random.default_rng(0)
    model.compile("adam", "mse", run_eagerly=True)
    callback = tfmot.sparsity.keras.UpdatePruningStep()
    model.fit(rng.normal(size=(16, 6, 8)), rng.normal(size=(16, 3)), batch_size=8, verbose=0, callbacks=[callback])
    return model


def _quantized(plain, scheme=None):
    import tensorflow_model_optimization as tfmot

    annotated = tfmot.quantization.keras.quantize_annotate_model(plain)
    return tfmot.quantization.keras.quantize_apply(annotated, *([scheme] if scheme else [])), plain


@saved_as("tf", as_built=True, among=MODELS)
def quantized():
    return _quantized(small_net())


@saved_as("h5", "keras", as_built=True, among=MODELS)
def quantized_with_zeros():
    import tensorflow_model_optimization as tfmot

    pruned = trained(tfmot.sparsity.keras.prune_low_magnitude(small_net()))
    scheme = tfmot.experimental.combine.Default8BitPrunePreserveQuantizeScheme()
    return _quantized(tfmot.sparsity.keras.strip_pruning(pruned), scheme)


@saved_as("tf", as_built=True, among=MODELS)
def quantized_with_clusters():
    import tensorflow_model_optimization as tfmot

    linear = tfmot.clustering.keras.CentroidInitialization.LINEAR
    clustered = trained(tfmot.clustering.keras.cluster_weights(small_net(), 4, linear))
    scheme = tfmot.experimental.combine.Default8BitClusterPreserveQuantizeScheme()
    return _quantized(tfmot.clustering.keras.strip_clustering(clustered), scheme)


if __name__ == "__main__":
    prepare()
    write(MODELS, sys.argv[1])
