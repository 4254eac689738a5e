"""A small model round every layer on sequences that has a rule: embeddings, recurrent layers, attention."""

import keras
import numpy as np
from keras import layers as L
from keras.src.models.functional import Functional

from kpipe.layers.recurrent import ConvLSTMCell

STEPS, WIDTH = 4, 6


def biased(model):
    """Draw the biases of all shapes, so that none is neutral."""
    rng = np.random.default_rng(0)
    for variable in model.weights:
        if variable.name == "bias":
            variable.assign(rng.normal(0, 0.3, variable.shape))
    return model


def sequence(name="steps", steps=STEPS):
    """Draw an input, and a dense layer over it whose channels may be cut."""
    given = keras.Input((steps, 3), name=name)
    return given, L.Dense(WIDTH, name=f"before_{name}")(given)


def ended(inputs, *outputs):
    """End a model: a dense layer on each output whose channels may be cut, and logits of them all."""
    ends = [L.Flatten()(L.Dense(5, activation="tanh", name=f"after_{i}")(x)) for i, x in enumerate(outputs)]
    x = L.Concatenate()(ends) if len(ends) > 1 else ends[0]
    return biased(keras.Model(inputs, L.Dense(3, name="logits")(x)))


def around(layer):
    given, x = sequence()
    return ended(given, layer(x))


def embedded(layer):
    tokens = keras.Input((STEPS,), dtype="int32", name="tokens")
    return ended(tokens, layer(tokens))


def there_and_back(tied):
    tokens, layer = keras.Input((STEPS,), dtype="int32", name="tokens"), L.ReversibleEmbedding(9, 8, tie_weights=tied)
    x = layer(tokens)
    x = L.Add()([x, L.Dense(8, activation="tanh", name="mixed")(L.Dense(7, name="inner")(x))])
    return biased(keras.Model(tokens, layer(x, reverse=True)))


def with_states(make):
    """A layer that hands its states on to a second one, all outputs used."""
    given, x = sequence()
    x, *states = make(7)(x)
    y, *ends = make(7)(x, initial_state=states)
    return ended(given, y, *ends)


def one_step(cell, states):
    """A cell called by hand, on states that a dense layer makes."""
    given = keras.Input((3,), name="given")
    x = L.Dense(WIDTH, name="before")(given)
    start = [L.Dense(7, name=f"state_{i}")(given) for i in range(states)]
    return ended(given, *keras.tree.flatten(cell(x, start)))


def stacked(**settings):
    given, x = sequence()
    cells = [L.LSTMCell(6), L.GRUCell(7, reset_after=False), L.SimpleRNNCell(5)]
    return ended(given, *keras.tree.flatten(L.RNN(cells, **settings)(x)))


def convolutional(rank, layer):
    given = keras.Input((3,) + (4,) * rank + (2,), name="maps")
    x = L.TimeDistributed([L.Conv1D, L.Conv2D, L.Conv3D][rank - 1](5, 1, name="before"))(given)
    return ended(given, *keras.tree.flatten(layer(x)))


def attended(layer, key_width=8, **call):
    """Cross attention over a query and a sequence of other length and width."""
    (one, query), (two, value) = sequence("query"), sequence("value", STEPS + 1)
    key = L.Dense(key_width, name="to_key")(two)
    return ended([one, two], layer(query, value, key=key, **call))


def luong(layer):
    (one, query), (two, value) = sequence("query"), sequence("value", STEPS + 1)
    return ended([one, two], layer([query, value, L.Dense(WIDTH, name="to_key")(two)]), layer([query, query]))


def each_step(inner):
    """A model at each step of a sequence of maps, then a recurrent layer."""
    given = keras.Input((3, 4, 4, 2), name="maps")
    return ended(given, L.GRU(6, return_sequences=True)(L.TimeDistributed(inner)(given)))


def residual_inside():
    maps = keras.Input((4, 4, 2), name="map")
    x = L.Conv2D(6, 3, padding="same", name="a")(maps)
    x = L.LayerNormalization(name="norm")(L.Add()([x, L.Conv2D(6, 1, name="b")(x)]))
    block = keras.Sequential([L.Conv2D(5, 1, name="c"), L.ReLU()], name="block")
    return each_step(keras.Model(maps, L.Flatten()(block(x)), name="inner"))


CASES = {
    Functional: residual_inside,
    keras.Sequential: lambda: each_step(keras.Sequential([L.Conv2D(6, 3), L.BatchNormalization(), L.Flatten()])),
    L.EinsumDense: lambda: around(L.EinsumDense("abc,cde->abde", (STEPS, 2, 7), bias_axes="de", activation="tanh")),
    L.Embedding: lambda: embedded(L.Embedding(9, 8)),
    L.ReversibleEmbedding: lambda: there_and_back(True),
    L.SimpleRNNCell: lambda: one_step(L.SimpleRNNCell(7), 1),
    L.LSTMCell: lambda: one_step(L.LSTMCell(7), 2),
    L.GRUCell: lambda: one_step(L.GRUCell(7), 1),
    L.StackedRNNCells: lambda: stacked(return_sequences=True, return_state=True),
    L.RNN: lambda: around(L.RNN(L.GRUCell(7), go_backwards=True, unroll=True)),
    L.SimpleRNN: lambda: with_states(lambda units: L.SimpleRNN(units, return_sequences=True, return_state=True)),
    L.LSTM: lambda: with_states(lambda units: L.LSTM(units, return_sequences=True, return_state=True)),
    L.GRU: lambda: with_states(lambda units: L.GRU(units, return_sequences=True, return_state=True)),
    ConvLSTMCell: lambda: convolutional(1, L.ConvLSTM1D(6, 3, padding="same", go_backwards=True)),
    L.ConvLSTM1D: lambda: convolutional(1, L.ConvLSTM1D(6, 3, return_sequences=True)),
    L.ConvLSTM2D: lambda: convolutional(2, L.ConvLSTM2D(6, 3, padding="same", return_state=True)),
    L.ConvLSTM3D: lambda: convolutional(3, L.ConvLSTM3D(6, 2)),
    L.Bidirectional: lambda: around(L.Bidirectional(L.LSTM(7, return_sequences=True))),
    L.TimeDistributed: lambda: around(L.TimeDistributed(L.Dense(7, activation="relu"))),
    L.MultiHeadAttention: lambda: attended(L.MultiHeadAttention(3, 4, value_dim=5)),
    L.GroupQueryAttention: lambda: attended(L.GroupQueryAttention(5, 6, 3)),
    L.Attention: lambda: luong(L.Attention(use_scale=True)),
    L.AdditiveAttention: lambda: luong(L.AdditiveAttention()),
}
