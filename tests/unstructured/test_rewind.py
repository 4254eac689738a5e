"""Lottery tickets: exact counts, bit-equal rewinding, and what a training may and may not do."""

import keras
import numpy as np
import pytest

from kpipe.errors import KpipeError
from kpipe.projections import hold_zeros
from kpipe.unstructured.rewind import find_ticket
from kpipe.unstructured.ticket import Ticket, draw_anew
from tests.models import build, samples


def lenet_300_100():
    keras.utils.set_random_seed(0)
    image = x = keras.Input((784,))
    for units, name in ((300, "fc1"), (100, "fc2")):
        x = keras.layers.Dense(units, "relu", name=name)(x)
    return keras.Model(image, keras.layers.Dense(10, name="output")(x))


def small():
    keras.utils.set_random_seed(0)
    return keras.Sequential(
        [
            keras.Input((6,)),
            keras.layers.Dense(20, "relu", name="a"),
            keras.layers.BatchNormalization(name="norm"),
            keras.layers.Dense(10, name="b"),
        ]
    )


def shift(model, callbacks=()):
    """Stand in for a training: change every weight, by other amounts."""
    rng = np.random.default_rng(1)
    model.set_weights([w + rng.normal(0, 0.1, w.shape).astype(w.dtype) for w in model.get_weights()])


X = np.random.default_rng(0).normal(size=(48, 6)).astype("float32")
Y = (X.sum(axis=1) > 0).astype("int32")


def fit(model, callbacks=(), optimizer="adam", run_eagerly=True, **options):
    """Train for 6 updates; eagerly where the compiled step is not what is tried, which saves tracing it."""
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(optimizer, loss, jit_compile=False, run_eagerly=run_eagerly, **options)
    return model.fit(X, Y, batch_size=8, verbose=0, callbacks=list(callbacks))


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


def test_a_ticket_is_drawn_anew_under_the_same_masks():
    ticket = find_ticket(small(), shift, rounds=2)
    one, same, other = (ticket.reinitialised(seed) for seed in (1, 1, 2))
    for place, mask in zip((0, 6), ticket.masks.values(), strict=True):
        drawn = [model.get_weights()[place] for model in (ticket.model, one, same, other)]
        assert all(np.array_equal(weight != 0, mask) for weight in drawn)
        assert np.array_equal(drawn[1], drawn[2])
        assert not any(np.isin(drawn[1][mask], weight[mask]).any() for weight in (drawn[0], drawn[3]))


def test_drawing_anew_passes_over_the_seeds_of_initializers():
    image = keras.Input((3,))
    seeded = keras.initializers.GlorotUniform(seed=5)
    net = keras.Model(image, keras.layers.Dense(4, kernel_initializer=seeded)(image))
    assert not np.isin(draw_anew(net, 0).get_weights()[0], net.get_weights()[0]).any()


def test_drawing_anew_keeps_what_was_adapted_and_what_is_frozen():
    image = keras.Input((3,))
    scaled = keras.layers.Normalization()
    scaled.adapt(np.arange(12.0).reshape(4, 3))
    net = keras.Model(image, keras.layers.Dense(2, name="new")(keras.layers.Dense(4, name="held")(scaled(image))))
    net.get_layer("held").trainable = False
    drawn = draw_anew(net, 0)
    assert not drawn.get_layer("held").trainable
    assert np.array_equal(drawn.get_layer("held").kernel, net.get_layer("held").kernel)
    assert not np.isin(drawn.get_layer("new").kernel, net.get_layer("new").kernel).any()
    x = np.arange(6.0).reshape(2, 3)
    assert np.array_equal(drawn.layers[1](x), scaled(x))
    assert not np.array_equal(scaled(x), x)


def test_weights_that_begin_alike_each_time_are_told():
    image = keras.Input((3,))
    net = keras.Model(image, keras.layers.Dense(4, kernel_initializer="ones", name="d")(image))
    with pytest.raises(KpipeError, match="d/kernel begins with the same weights"):
        find_ticket(net, shift, rounds=1).reinitialised()


def test_a_saved_ticket_is_the_same_ticket(tmp_path):
    ticket = find_ticket(small(), fit, rounds=2)
    ticket.save(tmp_path / "ticket.npz")
    loaded = Ticket.load(tmp_path / "ticket.npz", draw_anew(small(), 9))
    assert loaded.history == ticket.history
    assert loaded.kept == ticket.kept
    assert all(np.array_equal(loaded.masks[path], mask) for path, mask in ticket.masks.items())
    pairs = zip(loaded.model.get_weights(), ticket.model.get_weights(), strict=True)
    assert all(a.tobytes() == b.tobytes() for a, b in pairs)
    with pytest.raises(KpipeError, match="not of the ticket's architecture"):
        Ticket.load(tmp_path / "ticket.npz", lenet_300_100())


def test_the_history_holds_what_the_training_returned():
    fitted = find_ticket(small(), fit, rounds=2)
    assert [(one.number, len(one.logs["loss"])) for one in fitted.history] == [(1, 1), (2, 1)]
    told = find_ticket(small(), lambda model, callbacks: shift(model) or {"loss": np.array([2.0])}, rounds=1)
    assert told.history[0].logs == {"loss": [2.0]}
    assert find_ticket(small(), shift, rounds=1).history[0].logs == {}


def test_a_sparsity_is_reached_exactly_in_as_many_rounds_as_it_takes():
    ticket = find_ticket(small(), shift, sparsity=0.7, per_round=0.5)
    assert len(ticket.history) == 2
    assert [int((~mask).sum()) for mask in ticket.masks.values()] == [84, 140]
    assert [int((~mask).sum()) for mask in ticket.after(1).masks.values()] == [60, 100]
    again = find_ticket(small(), shift, sparsity=0.75, per_round=0.5)
    assert len(again.history) == 2


def test_a_ticket_can_be_pruned_further_from_where_it_stands():
    net = small()
    whole = find_ticket(net, shift, rounds=2, per_round=0.25)
    first = find_ticket(net, shift, rounds=1, per_round=0.25)
    second = find_ticket(first.model, shift, rounds=1, per_round=0.25)
    assert all(np.array_equal(*pair) for pair in zip(whole.masks.values(), second.masks.values(), strict=True))


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
    ticket = find_ticket(small(), shift, rounds=2, per_round={"^(.*/)?b/": 0.25}, pattern="2:4")
    (mask,) = ticket.masks.values()
    assert (mask.reshape(5, 4, 10).sum(axis=1) >= 2).all()
    assert int((~mask).sum()) == round((1 - 0.75**2) * 200)


def test_weights_that_no_expression_matches_are_left_alone():
    ticket = find_ticket(small(), shift, rounds=2, per_round={"^(.*/)?a/": 0.5})
    assert len(ticket.masks) == 1
    assert (ticket.model.get_weights()[6] != 0).all()
    assert ticket.kept == 30 / 120


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
    ("arguments", "message"),
    [
        ({}, "exactly one"),
        ({"rounds": 1, "sparsity": 0.5}, "exactly one"),
        ({"rounds": 0}, "rounds is 0"),
        ({"sparsity": 1.0}, r"The sparsity is 1.0"),
        ({"rounds": 1, "per_round": 1.0}, r"per_round is 1.0"),
        ({"rounds": 1, "per_round": {"nowhere": 0.2}}, "matches no weight"),
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


def test_rounds_that_are_not_there_are_told():
    with pytest.raises(KpipeError, match="expected 0 to 1"):
        find_ticket(small(), shift, rounds=1).after(2)
