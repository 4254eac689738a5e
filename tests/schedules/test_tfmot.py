"""TFMOT's own schedules say the same wherever TFMOT updates."""

import os

import pytest

from kpipe import schedules
from kpipe.schedules import PolynomialDecay


def disagreements(ours, theirs, end_step, steps=60):
    """List the steps at which TFMOT updates and we do not, or to another sparsity; we also update at `end_step`."""
    import tensorflow as tf

    wrong = []
    for step in range(steps):
        due, sparsity = theirs(tf.constant(step))
        same = ours(step)[0] == bool(due) or step == end_step
        if not same or (due and ours(step)[1] != pytest.approx(float(sparsity), abs=1e-6)):
            wrong.append(step)
    return wrong


def tfmots(name, arguments):
    import tensorflow as tf

    _ = tf.keras.layers  # found before TFMOT asks for Keras 2, `tf.keras` stays Keras 3 for the tests that come after
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TF_USE_LEGACY_KERAS", "1")  # as TFMOT does; afterwards it is as it was
        import tensorflow_model_optimization as tfmot

    return getattr(tfmot.sparsity.keras, name)(**arguments)


@pytest.mark.filterwarnings("ignore")  # TFMOT and tf_keras warn on import
@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("PolynomialDecay", dict(initial_sparsity=0.0, final_sparsity=0.8, begin_step=0, end_step=40, frequency=10)),
        (
            "PolynomialDecay",
            dict(initial_sparsity=0.2, final_sparsity=0.9, begin_step=3, end_step=30, power=2, frequency=7),
        ),
        ("ConstantSparsity", dict(target_sparsity=0.5, begin_step=5, frequency=4)),
        ("ConstantSparsity", dict(target_sparsity=0.5, begin_step=0, end_step=21, frequency=4)),
    ],
    ids=["polynomial", "polynomial, from 3", "constant", "constant, to 21"],
)
def test_agrees_with_tfmot_wherever_tfmot_updates(name, arguments):
    ours = getattr(schedules, name)(**arguments)
    assert disagreements(ours, tfmots(name, arguments), arguments.get("end_step")) == []


@pytest.mark.filterwarnings("ignore")  # TFMOT and tf_keras warn on import
def test_tf_keras_stays_keras_3():
    import keras
    import tensorflow as tf

    tfmots("ConstantSparsity", dict(target_sparsity=0.5, begin_step=0))
    assert tf.keras.layers.Dense is keras.layers.Dense and "TF_USE_LEGACY_KERAS" not in os.environ


@pytest.mark.filterwarnings("ignore")  # TFMOT and tf_keras warn on import
def test_another_schedule_disagrees():
    arguments = dict(initial_sparsity=0.0, final_sparsity=0.8, begin_step=0, end_step=40, frequency=10)
    theirs = tfmots("PolynomialDecay", arguments)
    assert disagreements(PolynomialDecay(0.0, 0.8, 0, 40, frequency=9), theirs, 40) != []
    assert disagreements(PolynomialDecay(0.0, 0.8, 0, 40, power=2, frequency=10), theirs, 40) == [10, 20, 30]
