"""The comparison of answers, where one of them is no number."""

import keras
import numpy as np
import pytest
from keras import layers as L
from keras import ops

from kpipe.copies import to_float64
from kpipe.errors import SurgeryError
from kpipe.graph import random_inputs, trace
from kpipe.legacy.keras2.refusal import Refusal
from kpipe.legacy.keras2.strip import check_stripped
from kpipe.structured.agreement import TOLERANCE, difference, settled
from kpipe.structured.channels import check_removal, masked_answer, remove_channels
from kpipe.structured.shorten import check_shortening, shorten
from kpipe.structured.stretches import answers, carried_over, stretches

FINE, BROKEN = np.array([1.0, 2.0]), np.array([1.0, np.nan])


@pytest.mark.parametrize("got", [[FINE, BROKEN], [BROKEN, FINE], [BROKEN, BROKEN]])
def test_an_answer_that_is_no_number_is_told_whichever_output_it_is(got):
    assert np.isnan(difference(keras.Sequential(), [FINE, FINE], got))
    with pytest.raises(Refusal, match="moves the outputs by nan"):
        check_stripped([FINE, FINE], got)


def test_the_largest_difference_counts_each_output_by_its_own_size():
    assert difference(keras.Sequential(), [FINE, 10 * FINE], [FINE + 0.5, 10 * FINE + 0.5]) == 0.25
    check_stripped([FINE, FINE], [FINE, FINE + 1e-6])


def test_a_smaller_model_that_answers_no_number_at_its_last_output_is_refused():
    x = keras.Input((3,))
    y = L.Dense(4, name="a")(x)
    model = keras.Model(x, [L.Dense(2, name="first")(y), L.Dense(2, name="last")(y)])
    traced = trace(model)
    keep = np.ones(traced.class_count, bool)
    small = remove_channels(model, traced, keep)
    assert check_removal(model, small, traced, keep) < 1e-6
    small.get_layer("last").bias.assign([0.0, np.nan])
    with pytest.raises(SurgeryError, match=r"differs by nan .* The first layer that differs is 'last'"):
        check_removal(model, small, traced, keep)


def test_a_difference_that_probabilities_hide_is_seen():
    x = keras.Input((4,))
    model = keras.Model(x, keras.layers.Dense(3, "softmax")(keras.layers.Dense(6, "relu", name="hidden")(x)))
    last = model.layers[-1]
    last.bias.assign([200.0, 0.0, 0.0])  # the answer is 1, 0, 0 whatever goes in
    traced = trace(model)
    keep = np.arange(traced.class_count) != traced.groups[0].classes[0]
    small = remove_channels(model, traced, keep)
    assert check_removal(model, small, traced, keep) < 1e-6
    hidden = small.layers[-2]
    hidden.kernel.assign(2 * hidden.kernel)
    inputs = np.ones((2, 4))
    np.testing.assert_array_equal(small(inputs), model(inputs))
    with pytest.raises(SurgeryError, match="differs by"):
        check_removal(model, small, traced, keep)
    assert last.activation is keras.activations.softmax


@pytest.mark.parametrize("floor", [-1e9, -np.inf])
def test_masked_logits_hide_nothing_and_are_no_fault(floor):
    """Where some classes are masked out, the logits are too large to compare, or not finite: probabilities count."""
    x = keras.Input((4,))
    logits = L.Dense(3)(L.Dense(6, "relu", name="hidden")(x))
    kept = np.array([[True, True, False]])
    model = keras.Model(x, L.Softmax()(ops.where(kept, logits, floor)))
    traced = trace(model)
    keep = np.arange(traced.class_count) != traced.groups[0].classes[0]
    small = remove_channels(model, traced, keep)
    assert check_removal(model, small, traced, keep) < 1e-6
    hidden = small.get_layer("hidden")
    hidden.kernel.assign(3 * hidden.kernel + 1)
    with pytest.raises(SurgeryError, match="differs by"):
        check_removal(model, small, traced, keep)


def cancelling(by):
    """Two branches that are nearly alike, and what is left of them: rounding counts a hundred thousand times."""
    keras.utils.set_random_seed(0)
    x = keras.Input((64,))
    y = L.LayerNormalization()(L.Dense(256, "relu", name="hidden")(x))  # its sums are taken otherwise where some go
    left, right = L.Dense(4, name="left"), L.Dense(4, name="right")
    model = keras.Model(x, L.Subtract()([left(y), right(y)]))
    right.set_weights([left.kernel + by * np.random.default_rng(0).normal(size=(256, 4)), left.bias])
    return model


def cut(model):
    traced = trace(model)
    keep = np.isin(np.arange(traced.class_count), traced.groups[0].classes[::2], invert=True)
    return traced, keep, remove_channels(model, traced, keep)


def wrong(small, by):
    twin = small.get_layer("left")
    twin.kernel.assign(twin.kernel * (1 + by))


def test_what_rounding_alone_takes_apart_is_compared_in_float64():
    model = cancelling(1e-7)
    traced, keep, small = cut(model)
    in_float32 = difference(model, masked_answer(traced, keep, random_inputs(model)), [small(random_inputs(model)[0])])
    assert in_float32 > TOLERANCE
    assert check_removal(model, small, traced, keep) < 1e-6
    wrong(small, 1e-5)
    with pytest.raises(SurgeryError, match=r"differs by (?!.*Rounding).* In float64 it is "):
        check_removal(model, small, traced, keep)


def test_where_float64_rounds_too_much_that_is_said():
    model = cancelling(1.0)
    chaotic = keras.Model(model.input, ops.sin(1e20 * model.output))
    traced, keep, small = cut(chaotic)
    with pytest.raises(SurgeryError, match=r"In float64 it is .* Rounding alone moves what .*check=False"):
        check_removal(chaotic, small, traced, keep)


def test_a_difference_of_single_precision_is_told_of_without_a_word_on_rounding():
    """The control: in a model whose answers are well defined."""
    model = cancelling(1.0)
    traced, keep, small = cut(model)
    assert check_removal(model, small, traced, keep) < 1e-5
    wrong(small, 1e-2)
    with pytest.raises(SurgeryError, match=r"differs by (?!.*Rounding)"):
        check_removal(model, small, traced, keep)


@keras.saving.register_keras_serializable("tests")
class Single(L.Layer):
    """Takes numbers of float32 alone."""

    def call(self, x):
        if x.dtype != "float32":
            raise TypeError(f"received {x.dtype}")
        return 2 * x


def test_what_cannot_compute_in_float64_is_named():
    x = keras.Input((64,))
    model = keras.Model(x, L.Dense(3)(Single()(x)))
    worst, more = settled(model, model, lambda model, twin: 1.0)
    assert worst == 1.0 and "could not be compared in float64: " in more


def test_a_stretch_left_out_is_compared_in_float64_too():
    keras.utils.set_random_seed(0)
    x = keras.Input((64,))
    y = L.Dense(64, name="goes")(x)
    left, right = L.Dense(4, name="left"), L.Dense(4, name="right")
    model = keras.Model(x, L.Subtract()([left(y), right(y)]))
    right.set_weights([left.kernel * (1 + 1e-6), left.bias])
    (stretch,) = (one for one in stretches(model, lambda path: False) if one.name == "goes")
    small = shorten(model, stretch)
    small.get_layer("left").kernel.assign(
        np.nextafter(left.kernel.numpy(), np.float32(0))
    )  # as if it rounded otherwise
    with pytest.raises(SurgeryError, match="In float64 it is "):
        check_shortening(model, small, stretch)
    double = to_float64(model)
    assert carried_over(stretch, double).paths == ("goes",)
    inputs = [np.ones((2, 64))]
    expected = left.kernel.numpy().astype(np.float64) - right.kernel.numpy()
    got = answers(double, inputs, carried_over(stretch, double))[0]
    np.testing.assert_allclose(got, inputs[0] @ expected, rtol=1e-6, atol=1e-12)
