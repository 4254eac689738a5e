"""Configurations of Keras 2 layers, written as Keras 3 takes them."""

import keras
import pytest

from kpipe.errors import KpipeError
from kpipe.legacy.activations import keras2_hard_sigmoid
from kpipe.legacy.translate import translate, translated_value


def made(kind, **config):
    kind, config = translate(kind, {"name": "it", "trainable": True, "dtype": "float32", **config})
    return getattr(keras.layers, kind).from_config(config)


def test_what_keras_3_does_not_take_goes_where_it_changes_nothing():
    layer = made("DepthwiseConv2D", kernel_size=[3, 3], groups=1, batch_input_shape=[None, 8, 8, 3])
    assert layer.kernel_size == (3, 3)
    assert made("GRU", units=2, time_major=False, implementation=1, reset_after=False).reset_after is False


@pytest.mark.parametrize(
    ("kind", "config", "key"),
    [
        ("DepthwiseConv2D", {"kernel_size": 3, "groups": 3}, "groups=3"),
        ("LSTM", {"units": 2, "time_major": True}, "time_major=True"),
        ("SpatialDropout1D", {"rate": 0.5, "noise_shape": [1]}, "noise_shape"),
        ("Dense", {"units": 2, "novelty": 1}, "novelty=1"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_would_change_the_result_is_refused_by_name(kind, config, key):
    with pytest.raises(KpipeError, match=f"'it' is configured with {key}"):
        translate(kind, {"name": "it", **config})


def test_layers_that_differ_are_translated():
    assert made("LeakyReLU", alpha=0.25).negative_slope == 0.25
    assert made("ThresholdedReLU", theta=0.5).threshold == 0.5
    assert made("BatchNormalization", axis=[3]).axis == 3
    assert made("SyncBatchNormalization", axis=[1]).synchronized is True
    separable = made("SeparableConv2D", filters=2, kernel_size=3, kernel_initializer="zeros", kernel_regularizer=None)
    assert separable.filters == 2
    with pytest.raises(KpipeError, match="over the axes"):
        made("BatchNormalization", axis=[1, 2])


def test_layers_in_layers_are_translated():
    inner = {"module": "keras.layers", "class_name": "LSTM", "config": {"name": "l", "units": 3, "time_major": False}}
    inner["config"]["recurrent_activation"] = "hard_sigmoid"
    layer = made("Bidirectional", layer=inner, merge_mode="sum")
    assert layer.forward_layer.cell.recurrent_activation is keras2_hard_sigmoid
    timed = made("TimeDistributed", layer={"class_name": "LeakyReLU", "config": {"name": "r", "alpha": 0.5}})
    assert timed.layer.negative_slope == 0.5
    with pytest.raises(KpipeError, match="'l' is configured with time_major"):
        made("Bidirectional", layer={**inner, "config": {**inner["config"], "time_major": True}})


def test_parts_are_carried_over_or_refused():
    maximum = {"module": "keras.constraints", "class_name": "MaxNorm", "config": {"max_value": 3.0, "axis": 0}}
    assert made("Dense", units=2, kernel_constraint=maximum).kernel_constraint.max_value == 3.0
    radial = {"module": "keras.constraints", "class_name": "RadialConstraint", "config": {}}
    with pytest.raises(KpipeError, match=r"keras\.constraints\.RadialConstraint is not in Keras 3"):
        made("Conv2D", filters=2, kernel_size=3, kernel_constraint=radial)
    policy = {"module": "keras.mixed_precision", "class_name": "Policy", "config": {"name": "mixed_float16"}}
    assert made("Dense", units=2, dtype=policy).dtype_policy.name == "mixed_float16"


def test_hard_sigmoid_is_that_of_keras_2():
    layer = made("Activation", activation="hard_sigmoid")
    values = layer(keras.ops.array([-2.6, -2.0, 0.0, 2.0, 2.6]))
    assert [round(float(value), 6) for value in values] == [0.0, 0.1, 0.5, 0.9, 1.0]  # clip(0.2 x + 0.5, 0, 1)


def test_functions_of_the_users_own_are_found_by_name():
    def squash(x):
        return x

    with keras.saving.custom_object_scope({"squash": squash}):
        assert made("Dense", units=2, activation="squash").activation is squash
    assert translated_value("activation", "relu") == "relu"


def test_a_class_that_keras_3_does_not_have_is_named():
    with pytest.raises(KpipeError, match=r"'it' is of the class 'LocallyConnected1D'"):
        translate("LocallyConnected1D", {"name": "it"})
