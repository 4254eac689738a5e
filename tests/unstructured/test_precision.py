import keras
import numpy as np
import pytest

from kpipe.projections import kernels
from kpipe.schedules import PolynomialDecay
from kpipe.unstructured import WeightPruning

RNG = np.random.default_rng(0)
X = RNG.normal(size=(64, 12)).astype("float32")
Y = RNG.integers(0, 4, 64)


@pytest.fixture
def policy(request):
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(request.param)
    yield request.param
    keras.config.set_dtype_policy(before)


class Counts(keras.callbacks.Callback):
    """Count the zeros of every kernel after every batch."""

    def __init__(self):
        super().__init__()
        self.zeros = []

    def on_train_batch_end(self, batch, logs=None):
        self.zeros.append([int(np.count_nonzero(variable.numpy() == 0)) for variable in kernels(self.model)])


def train(averages):
    model = keras.Sequential([keras.Input((12,)), keras.layers.Dense(16, "relu"), keras.layers.Dense(4)])
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    # No Adam: with weights of bfloat16 its rate of 0.999 rounds to 1, and it does not learn.
    model.compile(keras.optimizers.SGD(0.1, momentum=0.9, use_ema=averages), loss)
    prune, counts = WeightPruning(PolynomialDecay(0.0, 0.8, 0, 10, frequency=5)), Counts()
    before = [variable.numpy() for variable in kernels(model)]
    model.fit(X, Y, batch_size=8, epochs=2, verbose=0, callbacks=[prune, counts])
    for variable, old in zip(kernels(model), before, strict=True):
        kept = variable.numpy() != 0
        assert np.isfinite(variable.numpy()).all() and (variable.numpy() != old)[kept].any()
    return model, counts.zeros


@pytest.mark.sweep(3)
@pytest.mark.parametrize("averages", [False, True])
@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16", "bfloat16"], indirect=True)
def test_the_counts_are_exact_in_every_precision(policy, averages):
    keras.utils.set_random_seed(0)
    model, zeros = train(averages)
    assert isinstance(model.optimizer, keras.optimizers.LossScaleOptimizer) == (policy == "mixed_float16")
    assert all(variable.dtype == ("bfloat16" if policy == "bfloat16" else "float32") for variable in kernels(model))
    half_way = 0.8 * (1 - 0.5**3)
    assert zeros[4] == zeros[8] == [round(half_way * 192), round(half_way * 64)]
    assert zeros[9] == zeros[-1] == [round(0.8 * 192), round(0.8 * 64)]
