"""One network of each family of keras.applications, as small as it can be asked for, trained for some minutes.

Random weights would say nothing of rounding: fifty random layers either forget what comes in or make chaos of it. So
each network sees some thousand images of Fashion-MNIST, made as large and put in the range that its family expects. It
is by no means trained to the end.
"""

import sys
from functools import cache
from typing import Any

import numpy as np
import zoo

SIDES = {"InceptionV3": 75, "InceptionResNetV2": 75, "Xception": 71}
"""Pixels a side where a family takes no images of 32."""
NARROW: dict[str, dict[str, Any]] = {
    "MobileNet": {"alpha": 0.25},
    "MobileNetV2": {"alpha": 0.35},
    "MobileNetV3Small": {"alpha": 0.75},
}
HEADLESS = ("VGG16",)
"""Families that are built without their dense layers, which are many times as large as all others."""
STEPS = {
    **{"VGG16": 300, "ResNet50": 300, "ResNet50V2": 300, "DenseNet121": 400, "InceptionV3": 300},
    **{"InceptionResNetV2": 100, "Xception": 150, "NASNetMobile": 400, "MobileNet": 1500, "MobileNetV2": 1500},
    **{"MobileNetV3Small": 1500, "EfficientNetB0": 900, "EfficientNetV2B0": 700, "ConvNeXtTiny": 100},
}
"""Family -> how many steps it is trained: some minutes on one core."""
BATCH, TESTED = 32, 500
RATES = {"VGG16": 2e-4, "ConvNeXtTiny": 3e-4}
RATE = 1e-3
"""Greatest learning rate; families without batch norms take another one."""


@cache
def data() -> Any:
    """Read Fashion-MNIST."""
    import kpipe

    return kpipe.data.load("fashion_mnist")


def constructor(name: str) -> Any:
    """Find a family's function."""
    import keras

    return vars(keras.applications)[name]


def prepared(name: str, images: np.ndarray) -> np.ndarray:
    """Make images as large as a family takes them, in color, in the range that it expects.

    Args:
        name: The family.
        images: (n, 28, 28, 1), in [0, 1].
    """
    import keras

    side = SIDES.get(name, 32)
    images = np.asarray(keras.ops.image.resize(np.repeat(images, 3, axis=3), (side, side)))
    return np.asarray(sys.modules[constructor(name).__module__].preprocess_input(255.0 * images), np.float32)


def seen(name: str, count: int) -> np.ndarray:
    """Give images for calibration."""
    return prepared(name, data().calibration[:count])


def unseen(name: str) -> tuple[np.ndarray, np.ndarray]:
    """Give test images and their labels."""
    x, y = (part[:TESTED] for part in data().test)
    return prepared(name, x), y


def trained(name: str) -> Any:
    """Train one of keras.applications, as small as it can be asked for, to give logits."""
    import keras

    keras.utils.set_random_seed(0)
    steps, rate = STEPS[name], RATES.get(name, RATE)
    x, y = (part[: steps * BATCH] for part in data().train)
    x = prepared(name, x)
    head = {"include_top": False, "pooling": "avg"} if name in HEADLESS else {"classes": 10}
    options = {"classifier_activation": None, "input_shape": x.shape[1:]} | head | NARROW.get(name, {})
    model: Any = constructor(name)(weights=None, **options)
    zoo.settle(model)
    if name in HEADLESS:
        model = keras.Model(model.input, keras.layers.Dense(10, name="logits")(model.output), name=model.name)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    schedule: Any = keras.optimizers.schedules.CosineDecay(0.0, steps, warmup_target=rate, warmup_steps=steps // 10)
    model.compile(keras.optimizers.Adam(schedule, clipnorm=1.0), loss)
    model.fit(x, y, batch_size=BATCH, verbose=0)
    zoo.learn_statistics(model, x[:512])
    return model
