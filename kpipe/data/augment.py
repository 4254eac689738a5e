"""Images varied anew in every epoch of a training."""

import numpy as np
import tensorflow as tf
from keras import layers as L

from kpipe.errors import KpipeError


def augmented(
    images: np.ndarray, labels: np.ndarray, batch_size: int, *, flip: bool = False, shift: int = 0, seed: int = 0
) -> tf.data.Dataset:
    """Shuffle, mirror and shift images anew in every epoch.

    Args:
        images: (n, height, width, channels).
        labels: (n, ...).
        batch_size: Samples in a batch; the last one may have fewer.
        flip: Mirror each image left to right, or not, with equal chance.
        shift: Move each image by up to so many pixels along both axes; what comes in is zero.
        seed: Of all that is drawn: the same seed gives the same epochs.

    Returns:
        Batches of (images, labels), one epoch in length.

    Raises:
        KpipeError: When the images have another rank, or `shift` is no number of pixels within them.

    Example:
        >>> data = augmented(np.ones((5, 8, 8, 1), "float32"), np.arange(5), batch_size=2, flip=True, shift=1)
        >>> [len(labels) for _, labels in data]
        [2, 2, 1]

    References:
        He et al., Deep residual learning for image recognition (2015), section 4.2: shifts of 4 pixels and mirroring.
    """
    if np.ndim(images) != 4:
        raise KpipeError(f"Received inputs of shape {np.shape(images)}; expected images, (n, height, width, channels).")
    height, width = images.shape[1:3]
    if not isinstance(shift, int) or isinstance(shift, bool) or not 0 <= shift < min(height, width):
        raise KpipeError(f"Received shift={shift!r}; expected a number of pixels in [0, {min(height, width)}).")
    mirror = L.RandomFlip("horizontal", seed=seed)
    move = L.RandomTranslation(
        shift / height, shift / width, fill_mode="constant", interpolation="nearest", seed=seed + 1
    )

    def vary(batch: tf.Tensor, labels: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        batch = mirror(batch, training=True) if flip else batch
        return move(batch, training=True) if shift else batch, labels

    shuffled = tf.data.Dataset.from_tensor_slices((images, labels)).shuffle(len(images), seed=seed)
    return shuffled.batch(batch_size).map(vary).prefetch(1)
