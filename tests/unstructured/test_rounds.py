"""What each round takes: the counts of the paper, exactly, of the weights that are meant."""

import keras
import numpy as np
import pytest

from kpipe.errors import KpipeError
from kpipe.unstructured.rewind import find_ticket
from tests.unstructured.nets import Twins, lenet_300_100, shift, small

PAPER = {0: 100.0, 1: 80.0, 3: 51.3, 5: 32.9, 7: 21.1, 9: 13.5, 11: 8.7, 15: 3.6}
"""Round -> percent of the weights left, as Frankle and Carbin (2019) give them."""


def test_lenet_keeps_what_the_paper_keeps_round_by_round():
    ticket = find_ticket(lenet_300_100(), shift, rounds=16, per_round={"output": 0.1, "": 0.2})
    kept = [one.kept for one in ticket.history]
    for number, percent in PAPER.items():
        assert 100 * kept[number] == pytest.approx(percent, abs=0.05)
        assert ticket.after(number).kept == kept[number]
    for name, size, share in (("fc1", 235_200, 0.8), ("fc2", 30_000, 0.8), ("output", 1_000, 0.9)):
        mask = ticket.masks[f"{name}/kernel"]
        assert mask.size == size
        assert int(mask.sum()) == size - round((1 - share**16) * size)


def test_one_fraction_for_all_is_not_the_papers():
    """The control: without the gentler output layer the figures of the late rounds are others."""
    ticket = find_ticket(lenet_300_100(), shift, rounds=15)
    assert abs(100 * ticket.kept - PAPER[15]) > 0.05


def test_each_round_drops_the_lowest_survivors_of_its_training():
    net, seen = small(), []

    def train(model, callbacks):
        shift(model)
        seen.append(model.weights[0])

    ticket = find_ticket(net, train, rounds=2, per_round=0.25)
    first, second = (np.abs(variable.numpy()).ravel() for variable in seen)
    dropped = np.argsort(first)[:30]
    left = np.setdiff1d(np.arange(120), dropped)
    assert (second[dropped] == 0).all()
    more = left[np.argsort(second[left])][: round((1 - 0.75**2) * 120) - 30]
    expected = np.ones(120, bool)
    expected[dropped] = expected[more] = False
    assert np.array_equal(next(iter(ticket.masks.values())).ravel(), expected)


def test_a_sparsity_is_reached_exactly_in_as_many_rounds_as_it_takes():
    ticket = find_ticket(small(), shift, sparsity=0.7, per_round=0.5)
    assert len(ticket.history) == 2
    assert [int((~mask).sum()) for mask in ticket.masks.values()] == [84, 140]
    assert [int((~mask).sum()) for mask in ticket.after(1).masks.values()] == [60, 100]
    again = find_ticket(small(), shift, sparsity=0.75, per_round=0.5)
    assert len(again.history) == 2


def test_one_ranking_over_all_weights_follows_the_global_magnitude():
    net, seen = small(), []

    def train(model, callbacks):
        shift(model)
        seen.append([model.get_weights()[place] for place in (0, 6)])

    ticket = find_ticket(net, train, rounds=1, per_round=0.5, scope="global")
    threshold = np.sort(np.abs(np.concatenate([weight.ravel() for weight in seen[0]])))[160]
    for weight, mask in zip(seen[0], ticket.masks.values(), strict=True):
        assert np.array_equal(np.abs(weight) >= threshold, mask)
    shares = [mask.mean() for mask in ticket.masks.values()]
    assert shares[0] != shares[1]


def test_a_ticket_may_have_a_pattern():
    ticket = find_ticket(small(), shift, rounds=2, per_round={"^b/": 0.25}, pattern="2:4")
    (mask,) = ticket.masks.values()
    assert (mask.reshape(5, 4, 10).sum(axis=1) >= 2).all()
    assert int((~mask).sum()) == round((1 - 0.75**2) * 200)


@pytest.mark.parametrize("expression", ["^a/", "^a/kernel$", "^net/a/"], ids=["path", "whole path", "Keras's path"])
def test_weights_that_no_expression_matches_are_left_alone(expression):
    net = small()
    assert net.weights[0].path == "net/a/kernel"
    ticket = find_ticket(net, shift, rounds=2, per_round={expression: 0.5})
    assert list(ticket.masks) == ["a/kernel"]
    assert (ticket.model.get_weights()[6] != 0).all()
    assert ticket.kept == 30 / 120


@pytest.mark.parametrize("scope", ["layer", "global"])
def test_two_weights_that_keras_gives_one_path_are_told_apart(scope):
    keras.utils.set_random_seed(0)
    net = keras.Sequential([keras.Input((6,)), Twins(10, name="twins")])
    assert len({weight.path for weight in net.weights}) == 1
    fractions = {"kernel#2$": 0.5, "": 0.2}
    ticket = find_ticket(net, shift, rounds=2, per_round=fractions, scope=scope)
    assert {path: int((~mask).sum()) for path, mask in ticket.masks.items()} == {
        "twins/kernel": round((1 - 0.8**2) * 60),
        "twins/kernel#2": round((1 - 0.5**2) * 60),
    }
    for weight, mask in zip(ticket.model.get_weights(), ticket.masks.values(), strict=True):
        assert np.array_equal(weight != 0, mask)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "exactly one"),
        ({"rounds": 1, "sparsity": 0.5}, "exactly one"),
        ({"rounds": 0}, "rounds is 0"),
        ({"sparsity": 1.0}, r"The sparsity is 1.0"),
        ({"rounds": 1, "per_round": 1.0}, r"per_round is 1.0"),
        ({"rounds": 1, "per_round": {"nowhere": 0.2}}, r"'nowhere', which matches no weight.*: a/kernel, b/kernel\."),
        ({"rounds": 1, "per_round": {"a/": 0.2, "b/kernle": 0.1}}, "'b/kernle'.*Did you mean 'b/kernel'"),
        ({"rounds": 1, "per_round": {"a/bias": 0.2}}, "matches none of the weights to prune"),
        ({"rounds": 1, "per_round": {"a(": 0.2}}, r"'a\(', which is no regular expression"),
        ({"rounds": 1, "criterion": "taylor"}, r"'taylor' needs data \(grad\)"),
        ({"rounds": 1, "rewind_to": -1}, "rewind_to is -1"),
        ({"rounds": 1, "criterion": "movement"}, "follows the weights"),
        ({"rounds": 1, "criterion": "magnitud"}, "Unknown criterion"),
        ({"rounds": 4, "pattern": "2:4", "per_round": 0.2}, "2:4"),
    ],
    ids=lambda value: str(value) if isinstance(value, dict) else "",
)
def test_wrong_arguments_are_told(arguments, message):
    def never(model, callbacks):
        raise AssertionError("nothing may train before the arguments are looked at")

    with pytest.raises(KpipeError, match=message):
        find_ticket(small(), never, **arguments)
