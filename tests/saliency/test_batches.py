"""Which data evidence may be taken over: those that end, and again and again where it is asked for."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from kpipe.errors import KpipeError
from kpipe.saliency import check_data, gather
from kpipe.schedules import ConstantSparsity
from kpipe.structured import plan_filters
from kpipe.unstructured import WeightPruning, find_ticket, prune_weights
from tests.models import build, samples

MODEL = build("dense")
X, Y = samples(MODEL, 16)[0], np.arange(16) % 4
LOSS = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
ENDED = tf.data.Dataset.from_tensor_slices((X, Y)).batch(8)


class Rows(keras.utils.PyDataset):
    """Give one batch as often as it is said, or without end."""

    def __init__(self, count):
        super().__init__()
        self.count = count

    @property
    def num_batches(self):
        return self.count

    def __getitem__(self, index):
        return X, Y


ENDLESS = {
    "repeated": lambda: ENDED.repeat(),
    "repeated, then more": lambda: ENDED.repeat().prefetch(1).map(lambda x, y: (x, y)),
    "generator, repeated": lambda: tf.data.Dataset.from_generator(
        lambda: iter([(X, Y)]), output_signature=(tf.TensorSpec((16, 12)), tf.TensorSpec((16,), tf.int64))
    ).repeat(),
    "PyDataset": lambda: Rows(None),
}


@pytest.mark.parametrize("criterion", ["taylor", "fisher", "obd", "wanda"])
@pytest.mark.parametrize("make", ENDLESS.values(), ids=ENDLESS)
def test_data_without_end_are_refused_and_the_error_says_how_to_end_them(make, criterion):
    with pytest.raises(KpipeError, match=r"never end.*(data\.take\(32\)|num_batches say)"):
        prune_weights(MODEL, 0.5, criterion, data=make(), loss=LOSS)


@pytest.mark.parametrize("end", [lambda: ENDED.repeat().take(3), lambda: ENDED.repeat(2), lambda: Rows(2)])
def test_data_that_end_are_taken(end):
    assert gather(MODEL, [("k", "kernel", MODEL.weights[0])], "grad", end(), LOSS)["k"].grad.any()


def test_filters_refuse_them_too():
    with pytest.raises(KpipeError, match="never end"):
        plan_filters(MODEL, ratio=0.5, criterion="taylor", data=ENDED.repeat(), loss=LOSS)


def generator():
    yield X, Y


def test_an_iterator_is_refused_where_it_is_gone_through_again():
    with pytest.raises(KpipeError, match=r"iterator \(generator\).*WeightPruning goes through its data again"):
        check_data(generator(), again="WeightPruning")
    with pytest.raises(KpipeError, match="iterator"):
        check_data(iter(ENDED), again="WeightPruning")
    for data in (generator, ENDED, (X, Y), [X], {"x": X}, Rows(2), None):
        check_data(data, again="WeightPruning")
    check_data(generator())


@pytest.mark.parametrize(
    ("data", "message"), [(generator(), "iterator"), (ENDED.repeat(), "never end"), (Rows(None), "never end")]
)
def test_weight_pruning_refuses_them_before_the_fit(data, message):
    with pytest.raises(KpipeError, match=message):
        WeightPruning(ConstantSparsity(0.5, 0), "taylor", data=data)


def test_two_fields_take_two_passes():
    kernel = [("k", "kernel", MODEL.weights[0])]
    with pytest.raises(KpipeError, match="a criterion that needs grad and inputs goes through its data again"):
        gather(MODEL, kernel, ("grad", "inputs"), generator(), LOSS)
    assert gather(MODEL, kernel, ("grad", "inputs"), generator, LOSS)["k"].grad.any()
    assert gather(MODEL, kernel, "grad", generator(), LOSS)["k"].grad.any()


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (generator, None),
        (generator(), "find_ticket goes through its data again"),
        (ENDED.repeat(), "never end"),
        (None, r"'taylor' needs data \(grad\)"),
    ],
    ids=["function", "iterator", "endless", "none"],
)
def test_a_ticket_looks_at_its_data_before_anything_trains(data, message):
    trained = []

    def train(model, callbacks):
        trained.append(model)
        model.set_weights([w + 0.1 for w in model.get_weights()])

    if message is None:
        find_ticket(MODEL, train, rounds=2, criterion="taylor", data=data, loss=LOSS)
        assert len(trained) == 2
    else:
        with pytest.raises(KpipeError, match=message):
            find_ticket(MODEL, train, rounds=2, criterion="taylor", data=data, loss=LOSS)
        assert not trained
