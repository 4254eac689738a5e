"""The stage that finds a ticket: what it begins with, what it keeps, what it refuses."""

import keras
import numpy as np
import pytest
from pydantic import ValidationError

from kpipe.data import Dataset
from kpipe.errors import RecipeError
from kpipe.pipeline import Context, FloatModel
from kpipe.recipe.check import parse_recipe
from kpipe.stages import FindTicket, Train
from kpipe.stages.fields import Optimizer


@pytest.fixture(scope="module")
def data():
    rng = np.random.default_rng(0)
    y = np.arange(120) % 2
    x = (rng.normal(size=(120, 6)) + 2 * y[:, None]).astype("float32")
    return Dataset("points", (x[:64], y[:64]), (x[64:80], y[64:80]), (x[80:], y[80:]), x[:32], 2)


def net():
    keras.utils.set_random_seed(0)
    image = keras.Input((6,))
    hidden = keras.layers.Dense(8, activation="relu", name="hidden")(image)
    return keras.Model(image, keras.layers.Dense(2, name="logits")(hidden))


def context(data, folder, **changes):
    return Context("net", data, 0, folder, folder, **changes)


STILL = Optimizer(name="sgd", learning_rate=1e-30, decay="none")
"""Steps so small that they change no weight but those that are zero."""


@pytest.mark.slow
def test_it_begins_with_the_model_or_anew(data, tmp_path):
    model = net()
    model.layers[-1].bias.assign([0.0, 0.0])  # it moves a little, which tells that it was trained
    kernel = model.get_layer("hidden").kernel.numpy()
    for start, same in (("model", True), ("anew", False)):
        stage = FindTicket(rounds=1, epochs=1, start=start, optimizer=STILL)
        after = stage.run(FloatModel(model), context(data, tmp_path)).model.get_layer("hidden").kernel.numpy()
        assert np.count_nonzero(after) == 48 - round(0.2 * 48)
        assert np.isin(after[after != 0], kernel).all() == same


@pytest.mark.slow
def test_the_zeros_of_earlier_stages_stay(data, tmp_path):
    model = net()
    kernel = model.get_layer("hidden").kernel
    kept = np.arange(48).reshape(6, 8) % 2 == 0
    kernel.assign(np.where(kept, kernel.numpy(), 0))
    stage = FindTicket(rounds=1, epochs=1, per_round={"hidden": 0.25})
    told = context(data, tmp_path, holds_zeros=True)
    after = stage.run(FloatModel(model), told).model
    found = after.get_layer("hidden").kernel.numpy() != 0
    assert int(found.sum()) == 24 - 6
    reasons = {row["layer"]: row["reason"] for row in told.record.skipped}
    assert reasons["logits/kernel"] == "no expression of per_round is found in its path"
    assert "only kernels" in reasons["hidden/bias"] and "hidden/kernel" not in reasons
    assert not (found & ~kept).any()
    assert np.count_nonzero(after.get_layer("logits").kernel) == 16


@pytest.mark.slow
def test_a_later_training_keeps_the_ticket(data, tmp_path):
    found = FindTicket(sparsity=0.5, per_round=0.5, epochs=1).run(FloatModel(net()), context(data, tmp_path))
    zero = found.model.get_layer("hidden").kernel.numpy() == 0
    assert int(zero.sum()) == 24
    after = Train(epochs=1).run(found, context(data, tmp_path, holds_zeros=True)).model
    assert np.array_equal(after.get_layer("hidden").kernel.numpy() == 0, zero)


def test_it_learns_and_tells_of_each_round(data, tmp_path):
    told = context(data, tmp_path)
    stage = FindTicket(rounds=2, epochs=3, rewind_to=2, optimizer=Optimizer(learning_rate=0.05))
    after = stage.run(FloatModel(net()), told).model
    assert (after.predict(data.test[0], verbose=0).argmax(axis=1) == data.test[1]).mean() > 0.75
    rounds = told.record.details["rounds"]
    assert [(one["round"], round(one["weights left"], 2)) for one in rounds] == [(1, 1.0), (2, 0.8)]
    assert len(told.record.history["val_accuracy"]) == 9
    assert [one["val_accuracy"] for one in rounds] == told.record.history["val_accuracy"][2:6:3]
    assert [one["sparsity"] for one in told.record.details["weights"]] == pytest.approx([17 / 48, 6 / 16])


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"rounds": 1, "sparsity": 0.5},
        {"rounds": 0},
        {"rounds": 1, "per_round": {"(": 0.2}},
        {"sparsity": 1.0},
        {"rounds": 4, "pattern": "2:4"},
        {"rounds": 1, "criterion": "movement"},
        {"rounds": 1, "per_round": {}},
    ],
    ids=["neither", "both", "no rounds", "no expression", "nothing left", "beyond 2:4", "movement", "no fraction"],
)
def test_what_cannot_work_is_refused_when_the_recipe_is_read(fields):
    with pytest.raises(ValidationError):
        FindTicket(**fields)


@pytest.mark.parametrize(
    ("per_round", "fault"),
    [
        ("x", "stages[0].per_round: received 'x'; expected a fraction, such as 0.2"),
        (1.5, "stages[0].per_round: per_round is 1.5; expected a fraction in (0, 1)"),
        (True, "stages[0].per_round: per_round is True"),
        ({}, "stages[0].per_round: per_round is {}; expected a fraction in (0, 1), such as 0.2, or a mapping"),
        ({"conv": 2}, "stages[0].per_round: per_round is {'conv': 2}"),
        ({"a(": 0.2}, "stages[0].per_round: per_round has 'a(', which is no regular expression"),
    ],
    ids=str,
)
def test_a_fraction_that_is_none_is_one_fault_in_plain_words(per_round, fault):
    stage = {"stage": "find_ticket", "rounds": 1, "per_round": per_round}
    head = {"name": "a", "data": {"source": "digits"}, "model": {"factory": "kpipe.models:digits_cnn"}}
    with pytest.raises(RecipeError) as told:
        parse_recipe({**head, "stages": [stage]})
    assert str(told.value).strip().startswith(fault) and "\n" not in str(told.value).strip()


def test_a_ticket_may_have_a_pattern():
    assert FindTicket(rounds=3, pattern="2:4").pattern == "2:4"  # 1 - 0.8 ** 3 < 0.5 < 1 - 0.8 ** 4
