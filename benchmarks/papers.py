"""What the reproductions of papers share: the nets and data they name, one way to train, and files to go on from."""

import hashlib
import json
import os
import statistics
from pathlib import Path

RESULTS = Path(__file__).parent / "results"
RECORDS = Path(__file__).parent / "records"
"""What took hours to measure: figures that are kept with the code."""


def one_thread():
    """Compute on one core: these nets are too small for more, and several runs may share a machine."""
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    import tensorflow as tf

    tf.config.threading.set_intra_op_parallelism_threads(1)
    tf.config.threading.set_inter_op_parallelism_threads(1)


def data(name, seed, flat=False):
    """Load MNIST or Fashion-MNIST as tensors: 55,000 images to train on, 5,000 to validate on, 10,000 to test on."""
    import tensorflow as tf

    import kpipe.data

    found = kpipe.data.load(name, validation_fraction=5000 / 60000, seed=seed)
    splits = {"train": found.train, "validation": found.validation, "test": found.test}
    return {
        split: (tf.constant(x.reshape(len(x), -1) if flat else x), tf.constant(y.astype("int32")))
        for split, (x, y) in splits.items()
    }


def lenet_300_100(seed, initializer="glorot_normal"):
    """Build LeNet-300-100: 266,200 weights in its kernels."""
    import keras

    keras.utils.set_random_seed(seed)
    image = x = keras.Input((784,))
    for units, name in ((300, "fc1"), (100, "fc2")):
        x = keras.layers.Dense(units, "relu", kernel_initializer=initializer, name=name)(x)
    return keras.Model(image, keras.layers.Dense(10, kernel_initializer=initializer, name="output")(x), name="lenet300")


def lenet_5(seed):
    """Build LeNet-5 in Caffe's size: 430,500 weights in its kernels."""
    import keras

    keras.utils.set_random_seed(seed)
    layers = keras.layers
    image = keras.Input((28, 28, 1))
    x = layers.MaxPooling2D()(layers.Conv2D(20, 5, activation="relu", name="conv1")(image))
    x = layers.MaxPooling2D()(layers.Conv2D(50, 5, activation="relu", name="conv2")(x))
    x = layers.Dense(500, "relu", name="fc1")(layers.Flatten()(x))
    return keras.Model(image, layers.Dense(10, name="output")(x), name="lenet5")


def stream(x, y, batch, seed):
    """Give shuffled batches without end."""
    import tensorflow as tf

    images, labels = tf.convert_to_tensor(x), tf.convert_to_tensor(y)
    order = tf.data.Dataset.range(len(x)).shuffle(len(x), seed=seed).repeat().batch(batch)
    options = tf.data.Options()
    options.threading.private_threadpool_size = 1
    return order.map(lambda index: (tf.gather(images, index), tf.gather(labels, index))).with_options(options)


def cross_entropy():
    """Make the loss of a classifier that answers with logits."""
    import keras

    return keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def make_judge(model, split, batch=1000):
    """Give a function without arguments to the mean loss and the accuracy of the model as it is then."""
    import tensorflow as tf

    images, labels = split

    @tf.function
    def judge():
        losses, hits = [], []
        for begin in range(0, len(labels), batch):
            logits = model(images[begin : begin + batch], training=False)
            truth = labels[begin : begin + batch]
            losses.append(tf.nn.sparse_softmax_cross_entropy_with_logits(truth, logits))
            hits.append(tf.equal(tf.argmax(logits, -1, tf.int32), truth))
        return tf.reduce_mean(tf.concat(losses, 0)), tf.reduce_mean(tf.cast(tf.concat(hits, 0), tf.float32))

    return lambda: tuple(float(value) for value in judge())


def folder(name, settings):
    """Name the folder for the results of a benchmark; other settings have another one.

    Example:
        >>> one, other = folder("han", {"epochs": 8}), folder("han", {"epochs": 9})
        >>> one.parent == other.parent == RESULTS / "han", one == other, one == folder("han", {"epochs": 8})
        (True, False, True)
    """
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()
    return RESULTS / name / digest[:12]


def keep(path, result):
    """Write a result as JSON; give it back."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(result, indent=1))
    return result


def remembered(path, make):
    """Read a result that an earlier run has left, or make it and leave it; the path lies in a `folder`."""
    return json.loads(path.read_text()) if path.exists() else keep(path, make())


def spread(values, digits=2):
    """Say mean and standard deviation.

    Example:
        >>> spread([1.0, 2.0, 3.0])
        '2.00 ± 1.00'
    """
    values = list(values)
    deviation = statistics.stdev(values) if len(values) > 1 else 0.0
    return f"{statistics.mean(values):.{digits}f} ± {deviation:.{digits}f}"
