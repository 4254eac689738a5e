"""Tickets: drawn anew under their masks, saved and loaded."""

import keras
import numpy as np
import pytest

from kpipe.errors import KpipeError
from kpipe.unstructured.rewind import find_ticket
from kpipe.unstructured.ticket import Ticket, draw_anew
from tests.unstructured.nets import fit, lenet_300_100, shift, small


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


def test_drawing_anew_keeps_shared_layers_and_single_frozen_weights():
    shared, image = keras.layers.Dense(3, name="shared"), keras.Input((4, 3))
    net = keras.Model(image, keras.layers.TimeDistributed(shared)(shared(image)))
    shared.bias.trainable = False
    shared.bias.assign([1.0, 2.0, 3.0])
    drawn = draw_anew(net, 0)
    assert len(drawn.weights) == 2 and not drawn.get_layer("shared").bias.trainable
    assert drawn.get_layer("shared").bias.numpy().tolist() == [1.0, 2.0, 3.0]
    assert not np.isin(drawn.get_layer("shared").kernel, shared.kernel).any()


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


@pytest.mark.slow
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


def test_rounds_that_are_not_there_are_told():
    with pytest.raises(KpipeError, match="expected 0 to 1"):
        find_ticket(small(), shift, rounds=1).after(2)
