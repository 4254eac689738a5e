"""Rewinding: bit-equal beginnings, zeros that hold, and what a training may and may not do."""

import keras
import numpy as np
import pytest

from kpipe.errors import KpipeError
from kpipe.projections import hold_zeros
from kpipe.unstructured.rewind import find_ticket
from tests.models import build, samples
from tests.unstructured.nets import X, Y, fit, shift, small


def test_rewound_weights_are_the_first_ones_times_the_masks_bit_by_bit():
    net = small()
    begun = net.get_weights()
    ticket = find_ticket(net, fit, rounds=3, per_round=0.3)
    kernels = list(ticket.masks.values())
    expected = [begun[0] * kernels[0], *begun[1:6], begun[6] * kernels[1], begun[7]]
    for made in (ticket.model, ticket.rewound()):
        for weight, value in zip(made.get_weights(), expected, strict=True):
            assert weight.tobytes() == (value + 0.0).tobytes()
    assert all(np.array_equal(*pair) for pair in zip(net.get_weights(), begun, strict=True))
    fit(ticket.model)
    assert not np.array_equal(ticket.model.get_weights()[0], expected[0])
    assert np.array_equal(ticket.rewound().get_weights()[0], expected[0])


def test_every_round_begins_alike_under_its_masks_with_a_new_optimizer():
    net = small()
    begun, seen = net.get_weights()[0], []

    def train(model, callbacks):
        seen.append((model.weights[0].numpy(), int(model.optimizer.iterations.numpy()), model.optimizer))
        return model.fit(X, Y, verbose=0, callbacks=callbacks)

    net.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True), run_eagerly=True)
    ticket = find_ticket(net, train, rounds=3)
    for number, (weight, step, optimizer) in enumerate(seen):
        mask = next(iter(ticket.after(number).masks.values()))
        assert np.array_equal(weight, np.where(mask, begun, 0))
        assert step == 0
        assert optimizer is not net.optimizer
    assert len({id(optimizer) for _, _, optimizer in seen}) == 3
    assert net.optimizer.iterations.numpy() == 0


@pytest.mark.sweep(1)
@pytest.mark.parametrize("step", [1, 5])
def test_rewinding_to_a_step_gives_the_weights_of_that_step(step):
    def train(model, callbacks):
        keras.utils.set_random_seed(7)  # the order of the samples
        return fit(model, callbacks)

    expected = []

    def note(batch, logs):
        if batch == step - 1 and not expected:
            expected.extend(twin.get_weights())

    net, twin = small(), small()
    train(twin, [keras.callbacks.LambdaCallback(on_train_batch_end=note)])
    ticket = find_ticket(net, train, rounds=2, rewind_to=step)
    assert all(np.array_equal(*pair) for pair in zip(ticket.start, expected, strict=True))
    mask = next(iter(ticket.masks.values()))
    assert np.array_equal(ticket.model.get_weights()[0], np.where(mask, expected[0], 0))
    assert not np.array_equal(ticket.start[0], net.get_weights()[0])


@pytest.mark.sweep(1)
@pytest.mark.parametrize(
    ("train", "message"),
    [
        (fit, r"rewind_to=99: it ended after update 6"),
        (lambda model, callbacks: fit(model), "did not use its callbacks"),
        (
            lambda model, callbacks: fit(model, callbacks, run_eagerly=False, steps_per_execution=4),
            "no multiple of steps_per_execution",
        ),
    ],
    ids=["too short", "no callbacks", "passed over"],
)
def test_a_step_that_never_comes_is_told(train, message):
    step = 3 if "steps_per" in message else 99
    with pytest.raises(KpipeError, match=message):
        find_ticket(small(), train, rounds=1, rewind_to=step)


def test_zeros_stay_zero_in_the_rounds_and_after():
    seen = []

    def train(model, callbacks):
        found = fit(model, callbacks, "adamw", run_eagerly=False)
        seen.append(model.weights[0].numpy())
        return found

    ticket = find_ticket(small(), train, rounds=2, per_round=0.4)
    assert np.array_equal(seen[1] != 0, next(iter(ticket.after(1).masks.values())))
    mask = next(iter(ticket.masks.values()))
    for hold in (ticket.hold, lambda model: hold_zeros(model)):
        held = ticket.rewound()
        with hold(held):
            fit(held, run_eagerly=False)
        assert np.array_equal(held.get_weights()[0] != 0, mask)
    loose = ticket.rewound()
    fit(loose, run_eagerly=False)
    assert (loose.get_weights()[0][~mask] != 0).any()


@pytest.mark.slow
def test_the_history_holds_what_the_training_returned():
    fitted = find_ticket(small(), fit, rounds=2)
    assert [(one.number, len(one.logs["loss"])) for one in fitted.history] == [(1, 1), (2, 1)]
    told = find_ticket(small(), lambda model, callbacks: shift(model) or {"loss": np.array([2.0])}, rounds=1)
    assert told.history[0].logs == {"loss": [2.0]}
    assert find_ticket(small(), shift, rounds=1).history[0].logs == {}


def test_a_ticket_can_be_pruned_further_from_where_it_stands():
    net = small()
    whole = find_ticket(net, shift, rounds=2, per_round=0.25)
    first = find_ticket(net, shift, rounds=1, per_round=0.25)
    second = find_ticket(first.model, shift, rounds=1, per_round=0.25)
    assert all(np.array_equal(*pair) for pair in zip(whole.masks.values(), second.masks.values(), strict=True))


@pytest.mark.sweep(1)
@pytest.mark.parametrize("name", ["conv_bn", "residual"])
def test_other_nets_have_tickets_too(name):
    net = build(name)
    net.compile("sgd", "mse", run_eagerly=True)
    x = samples(net, 8)[0]
    y = np.zeros_like(net.predict(x, verbose=0))
    ticket = find_ticket(net, lambda model, told: model.fit(x, y, verbose=0, callbacks=told), rounds=2)
    assert ticket.kept == pytest.approx(0.64, abs=0.01)
    assert set(ticket.history[1].logs) == {"loss"}


@pytest.mark.parametrize(
    ("train", "message"),
    [
        (lambda model, callbacks: None, "left every weight as it was"),
        (lambda m, c: shift(m) or 3, "train returned int"),
    ],
    ids=["idle", "number"],
)
def test_a_training_that_is_none_is_told(train, message):
    with pytest.raises(KpipeError, match=message):
        find_ticket(small(), train, rounds=1)
