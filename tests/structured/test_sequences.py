"""Channels cut from layers on sequences, compared with weights zeroed by hand or with the formula in NumPy."""

import keras
import numpy as np
import pytest
from keras import layers as L

from kpipe.errors import SurgeryError
from kpipe.graph import trace
from kpipe.layers import RULES, Rule, recurrent
from kpipe.structured import plan_filters, prune_filters
from kpipe.structured.channels import check_removal, remove_channels
from tests.models import samples

STEPS = 5


def seeded(model):
    """Draw every vector and bias, so that no channel is neutral."""
    rng = np.random.default_rng(0)
    for variable in model.weights:
        if variable.name in ("gamma", "moving_variance"):
            variable.assign(rng.uniform(0.5, 1.5, variable.shape))
        elif variable.name in ("bias", "beta", "moving_mean") or len(variable.shape) == 1:
            variable.assign(rng.normal(0, 0.3, variable.shape))
    return model


def keeping(model, **removed):
    """Trace a model, and say of each class whether it stays: all but these places of these groups."""
    traced = trace(model, unknown="freeze")
    keep, groups = np.ones(traced.class_count, bool), {group.name: group for group in traced.groups}
    for name, places in removed.items():
        keep[groups[name].classes[places]] = False
    return traced, keep


def cut(model, **removed):
    return remove_channels(model, *keeping(model, **removed))


def zeroed(variable, *index):
    value = np.asarray(variable).copy()
    value[index] = 0
    variable.assign(value)


def alike(model, small, tolerance=1e-6):
    """Say whether two models answer alike."""
    (x,) = samples(model, 4)
    return np.abs(np.asarray(model(x)) - small(x)).max() <= tolerance


def over(layer, units=6, steps=STEPS, seed=0):
    """dense -> the layer -> dense on sequences."""
    keras.utils.set_random_seed(seed)
    given = keras.Input((steps, 3), name="given")
    return seeded(keras.Model(given, L.Dense(2, name="after")(layer(L.Dense(4, name="before")(given)))))


CELLS = {
    "simple": lambda **s: L.SimpleRNN(6, name="layer", **s),
    "lstm": lambda **s: L.LSTM(6, name="layer", **s),
    "gru": lambda **s: L.GRU(6, name="layer", **s),
    "gru, reset before": lambda **s: L.GRU(6, name="layer", reset_after=False, **s),
    "gru, backwards": lambda **s: L.GRU(6, name="layer", go_backwards=True, implementation=1, **s),
    "lstm, unrolled": lambda **s: L.LSTM(6, name="layer", unroll=True, use_bias=False, **s),
    "any cell": lambda **s: L.RNN(L.LSTMCell(6), name="layer", **s),
}


@pytest.mark.sweep(5)
@pytest.mark.parametrize("sequences", [False, True])
@pytest.mark.parametrize("make", CELLS.values(), ids=CELLS)
def test_units_against_rows_zeroed_by_hand(make, sequences):
    model = over(make(return_sequences=sequences))
    small = cut(model, layer=[1, 4], before=[0])
    assert small.get_layer("layer").cell.units == 4 and not alike(model, small, 1e-4)
    cell = model.get_layer("layer").cell
    zeroed(cell.recurrent_kernel, [1, 4])
    zeroed(cell.kernel, [0])
    zeroed(model.get_layer("after").kernel, [1, 4])
    assert alike(model, small)


def test_gates_in_the_wrong_order_are_caught(monkeypatch):
    monkeypatch.setattr(recurrent.np, "tile", np.repeat)
    model = over(L.LSTM(6, name="layer"))
    traced, keep = keeping(model, layer=[1, 4])
    with pytest.raises(SurgeryError, match="differs by"):
        check_removal(model, remove_channels(model, traced, keep), traced, keep)


@pytest.mark.sweep(3)
@pytest.mark.parametrize("mode", ["concat", "sum", "ave", "mul", None])
def test_both_directions_against_rows_zeroed_by_hand(mode):
    keras.utils.set_random_seed(0)
    given = keras.Input((STEPS, 3), name="given")
    layer = L.Bidirectional(L.GRU(6, return_sequences=True), merge_mode=mode, name="layer")
    made = layer(given)
    ends = [L.Dense(2, name=f"after_{i}")(x) for i, x in enumerate([made] if mode else made)]
    model = seeded(keras.Model(given, ends[0] if mode else L.Concatenate()(ends)))
    small = cut(model, layer=[0, 3])
    assert not alike(model, small, 1e-4)
    for one in (layer.forward_layer, layer.backward_layer):
        zeroed(one.cell.recurrent_kernel, [0, 3])
    for i in range(1 if mode else 2):
        zeroed(model.get_layer(f"after_{i}").kernel, [0, 3, 6, 9] if mode == "concat" else [0, 3])
    assert alike(model, small)
    assert small.get_layer("layer").backward_layer.cell.units == 4


def test_directions_of_different_kinds_share_their_units():
    backward = L.LSTM(6, go_backwards=True, activation="relu")
    model = over(L.Bidirectional(L.GRU(6), backward_layer=backward, name="layer"))
    prune_filters(model, plan_filters(model, ratio=0.5))
    given = keras.Input((STEPS, 3), name="given")
    unequal = L.Bidirectional(L.GRU(6), backward_layer=L.LSTM(5, go_backwards=True), merge_mode=None, name="layer")
    with pytest.raises(SurgeryError, match=r"'layer': its two directions .*\[\(6,\)\] and \[\(5,\)\]"):
        trace(keras.Model(given, L.Dense(2)(unequal(given)[0])))


def test_states_of_both_directions_are_tied_to_their_units():
    keras.utils.set_random_seed(0)
    given = keras.Input((STEPS, 3), name="given")
    states = [L.Dense(6, name=f"state_{i}")(given[:, 0]) for i in range(4)]
    outputs = L.Bidirectional(L.LSTM(6, return_state=True), name="layer")(given, initial_state=states)
    model = seeded(keras.Model(given, L.Dense(2, name="after")(L.Concatenate()(outputs))))
    small = cut(model, **{trace(model, unknown="freeze").groups[0].name: [2]})
    assert small.get_layer("state_3").units == 5 and small.get_layer("after").kernel.shape == (30, 2)
    layer = model.get_layer("layer")
    for one in (layer.forward_layer, layer.backward_layer):
        zeroed(one.cell.recurrent_kernel, [2])
    zeroed(model.get_layer("after").kernel, [2 + 6 * i for i in range(6)])
    assert alike(model, small)


def test_stacked_cells_against_rows_zeroed_by_hand():
    cells = [L.LSTMCell(6), L.GRUCell(5), L.SimpleRNNCell(4)]
    model = over(L.RNN(cells, return_sequences=True, name="layer"))
    names = [group.name for group in trace(model).groups if "layer" in group.layers]
    small = cut(model, **dict(zip(names, ([0, 5], [1], [3]), strict=True)))
    assert [cell.units for cell in small.get_layer("layer").cell.cells] == [4, 4, 3] and not alike(model, small, 1e-4)
    first, second, third = model.get_layer("layer").cell.cells
    zeroed(first.recurrent_kernel, [0, 5])
    zeroed(second.kernel, [0, 5])
    zeroed(second.recurrent_kernel, [1])
    zeroed(third.kernel, [1])
    zeroed(third.recurrent_kernel, [3])
    zeroed(model.get_layer("after").kernel, [3])
    assert alike(model, small)


@pytest.mark.parametrize("rank", [1, 2, 3])
def test_filters_of_convolutional_cells_against_rows_zeroed_by_hand(rank):
    keras.utils.set_random_seed(0)
    given = keras.Input((3,) + (4,) * rank + (2,), name="maps")
    convolution, layer = [(L.Conv1D, L.ConvLSTM1D), (L.Conv2D, L.ConvLSTM2D), (L.Conv3D, L.ConvLSTM3D)][rank - 1]
    x = layer(5, 2, padding="same", name="layer")(given)
    model = seeded(keras.Model(given, convolution(2, 1, name="after")(x)))
    small = cut(model, layer=[0, 3])
    assert small.get_layer("layer").filters == 3 and not alike(model, small, 1e-4)
    zeroed(model.get_layer("layer").cell.recurrent_kernel, ..., [0, 3], slice(None))
    zeroed(model.get_layer("after").kernel, ..., [0, 3], slice(None))
    assert alike(model, small)


def test_maps_with_channels_first_keep_them_there():
    """The CPU cannot run such maps, but their ids can be followed."""
    given = keras.Input((3, 2, 4, 4), name="maps")
    layer = L.ConvLSTM2D(5, 3, data_format="channels_first", return_sequences=True, return_state=True, name="layer")
    found = next(one for one in trace(keras.Model(given, layer(given))).layers if one.path == "layer")
    assert [ids.shape for ids in found.out] == [(1, 5, 1, 1), (5, 1, 1), (5, 1, 1)]


def test_a_layer_at_each_step_against_rows_zeroed_by_hand():
    keras.utils.set_random_seed(0)
    given = keras.Input((3, 4, 4, 2), name="maps")
    x = L.TimeDistributed(L.Conv2D(6, 3, activation="tanh"), name="maps_of_step")(given)
    x = L.TimeDistributed(L.BatchNormalization(), name="norm")(x)
    x = L.TimeDistributed(L.Flatten(), name="flat")(x)
    model = seeded(keras.Model(given, L.Dense(2, name="after")(x)))
    small = cut(model, maps_of_step=[1, 2])
    assert small.get_layer("norm").layer.gamma.shape == (4,) and not alike(model, small, 1e-4)
    zeroed(model.get_layer("after").kernel, [place * 6 + channel for place in range(4) for channel in (1, 2)])
    assert alike(model, small)


def test_a_model_at_each_step_against_rows_zeroed_by_hand():
    keras.utils.set_random_seed(0)
    maps = keras.Input((4, 4, 2), name="map")
    x = L.Conv2D(6, 3, padding="same", name="a")(maps)
    block = keras.Sequential([L.Conv2D(5, 1, activation="tanh", name="c")], name="block")
    inner = keras.Model(maps, L.Flatten(name="flat")(block(L.Add()([x, L.Conv2D(6, 1, name="b")(x)]))), name="inner")
    given = keras.Input((3, 4, 4, 2), name="maps")
    model = seeded(keras.Model(given, L.Dense(2, name="after")(L.TimeDistributed(inner, name="layer")(given))))
    first, second = (group.name for group in trace(model).groups)
    small = cut(model, **{first: [1, 2], second: [4]})
    assert trace(model).macs() == 3 * 16 * (9 * 2 * 6 + 6 * 6 + 6 * 5) + 3 * 16 * 5 * 2
    inside = small.get_layer("layer").layer
    assert (inside.get_layer("b").filters, inside.get_layer("block").layers[0].filters) == (4, 4)
    assert not alike(model, small, 1e-4)
    for one in (inner.get_layer("b"), block.layers[0]):
        zeroed(one.kernel, ..., [1, 2], slice(None))
    zeroed(model.get_layer("after").kernel, [place * 5 + 4 for place in range(16)])
    assert alike(model, small)


def test_what_cannot_be_followed_in_a_model_inside_is_named():
    given, step = keras.Input((3, 4), name="given"), keras.Input((4,), name="step")
    twice = L.Dense(4, name="twice")
    again = keras.Model(step, twice(twice(step)), name="inner")
    sliced = keras.Model(step, L.Dense(6, name="wide")(step)[:, :5], name="inner")
    for inner, reason in (again, "'twice' of 'inner' inside is called more than once"), (sliced, "sizes of its own"):
        with pytest.raises(SurgeryError, match=f"'layer': .*{reason}"):
            trace(keras.Model(given, L.Dense(2)(L.TimeDistributed(inner, name="layer")(given))))


def test_the_reference_of_a_layer_inside_is_computed_at_each_step(monkeypatch):
    class Centred(L.Layer):
        """Subtract the mean over the channels."""

        def call(self, x):
            return x - keras.ops.mean(x, -1, keepdims=True)

        def compute_output_shape(self, shape):
            return shape

    def reference(kept, channels):
        keep = kept(channels)
        return lambda x: x - keras.ops.sum(x * keep, -1, keepdims=True) / keep.sum()

    def centred(layer, ids, x):
        channels = ids.along(x, -1)
        return Rule(x, reference=lambda kept: reference(kept, channels))

    facts = type(RULES[L.Dense])
    monkeypatch.setitem(RULES, Centred, facts(centred))
    model = over(L.TimeDistributed(Centred(), name="layer"))
    with keras.saving.custom_object_scope({"Centred": Centred}):
        traced, keep = keeping(model, before=[1])
        small = remove_channels(model, traced, keep)
    assert check_removal(model, small, traced, keep) < 1e-6
    monkeypatch.setitem(RULES, Centred, facts(lambda layer, ids, x: Rule(x)))  # a rule that says nothing of the mean
    with keras.saving.custom_object_scope({"Centred": Centred}), pytest.raises(SurgeryError, match="differs by"):
        prune_filters(model, plan_filters(model, ratio=0.3))


EQUATIONS = {  # equation of a dense layer that brings channels, output_shape, bias_axes; rows of the kernel after it
    "abc,cd->abd": ((STEPS, 6), "d", ("abc,cd->abd", lambda kernel, gone: zeroed(kernel, gone))),
    "...c,cd->...d": (6, "d", ("abc,cd->abd", lambda kernel, gone: zeroed(kernel, gone))),
    "abc,cde->abde": ((STEPS, 3, 6), "de", ("abde,def->abf", lambda kernel, gone: zeroed(kernel, slice(None), gone))),
    "abc,dec->abed": ((STEPS, 3, 6), "ed", ("abed,fde->abf", lambda kernel, gone: zeroed(kernel, slice(None), gone))),
}


def through(equation, shape, bias, after):
    keras.utils.set_random_seed(0)
    given = keras.Input((STEPS, 3), name="given")
    x = L.EinsumDense(equation, shape, bias_axes=bias, activation="tanh", name="layer")(given)
    return seeded(keras.Model(given, L.EinsumDense(after, (STEPS, 2), bias_axes=after[-1], name="after")(x)))


@pytest.mark.parametrize("equation", EQUATIONS)
def test_einsums_against_rows_zeroed_by_hand(equation):
    shape, bias, (after, zero) = EQUATIONS[equation]
    model = through(equation, shape, bias, after)
    group = trace(model).groups[0]
    assert (group.name, len(group)) == ("layer", 6)
    small = cut(model, layer=[0, 2])
    assert not alike(model, small, 1e-4)
    zero(model.get_layer("after").kernel, [0, 2])
    assert alike(model, small)


def test_channels_pass_an_einsum_over_another_axis():
    keras.utils.set_random_seed(0)
    given = keras.Input((STEPS, 3), name="given")
    x = L.Dense(6, name="before")(given)
    x = L.EinsumDense("abc,bd->adc", (7, 6), bias_axes="d", name="over_steps")(x)
    x = L.EinsumDense("abc,cd->abdc", (7, 2, 6), name="each")(x)  # scales each channel twice
    model = seeded(keras.Model(given, L.EinsumDense("abdc,dce->abe", (7, 2), name="after")(x)))
    traced, keep = keeping(model, before=[1, 5])
    small = remove_channels(model, traced, keep)
    assert small.get_layer("each").kernel.shape == (4, 2) and not alike(model, small, 1e-4)
    assert traced.macs() == STEPS * 3 * 6 + STEPS * 7 * 6 + 7 * 6 * 2 + 7 * 2 * 6 * 2
    assert traced.macs(keep) == STEPS * 3 * 4 + STEPS * 7 * 4 + 7 * 4 * 2 + 7 * 2 * 4 * 2
    zeroed(model.get_layer("after").kernel, slice(None), [1, 5])
    assert alike(model, small)


def test_channels_that_an_einsum_adds_up_stay():
    given = keras.Input((STEPS, 3), name="given")
    x = L.EinsumDense("abc,bd->ad", 7, name="layer")(L.Dense(6, name="before")(given))
    traced = trace(keras.Model(given, L.Dense(2)(x)))
    assert "sums over them without a kernel" in traced.frozen["before"]
    assert [group.name for group in traced.groups] == ["layer"]


@pytest.mark.parametrize("tied", [True, False])
def test_embeddings_there_and_back_against_numpy(tied):
    keras.utils.set_random_seed(0)
    tokens = keras.Input((STEPS,), dtype="int32", name="tokens")
    layer = L.ReversibleEmbedding(7, 6, tie_weights=tied, name="layer")
    model = keras.Model(tokens, layer(layer(tokens), reverse=True))
    small = cut(model, layer=[0, 4])
    kept = [1, 2, 3, 5]
    table = np.asarray(layer.embeddings)
    back = table.T if tied else np.asarray(layer.reverse_embeddings)
    (x,) = samples(model, 4)
    assert np.abs(table[x][..., kept] @ back[kept] - small(x)).max() < 1e-6
    assert np.abs(np.asarray(model(x)) - small(x)).max() > 1e-4
    assert small.count_params() == 7 * 4 * (1 if tied else 2) and trace(small).macs() == STEPS * 4 * 7


def masked_classifier(layer):
    keras.utils.set_random_seed(0)
    tokens = keras.Input((STEPS,), dtype="int32", name="tokens")
    x = L.Embedding(5, 6, mask_zero=True, name="embedding")(tokens)
    return seeded(keras.Model(tokens, L.Dense(2, name="after")(layer(x))))


@pytest.mark.parametrize("layer", [L.GRU, lambda units, name: L.Bidirectional(L.LSTM(units), name=name)])
def test_masks_of_padded_tokens_go_on(layer):
    model = masked_classifier(layer(6, name="layer"))
    small = cut(model, embedding=[2], layer=[1, 4])
    x = np.array([[1, 2, 0, 0, 0], [3, 4, 4, 1, 2]])
    assert np.abs(np.asarray(small(x)) - small(np.flip(x, 1))).max() > 1e-4
    inner = model.get_layer("layer")
    for cell in [inner.cell] if isinstance(inner, L.GRU) else [inner.forward_layer.cell, inner.backward_layer.cell]:
        zeroed(cell.recurrent_kernel, [1, 4])
        zeroed(cell.kernel, [2])
    zeroed(model.get_layer("after").kernel, [1, 4] if isinstance(inner, L.GRU) else [1, 4, 7, 10])
    assert np.abs(np.asarray(model(x)) - small(x)).max() < 1e-6


def test_a_stateful_layer_starts_anew():
    keras.utils.set_random_seed(0)
    given = keras.Input(batch_shape=(3, STEPS, 3), name="given")
    x = L.GRU(6, stateful=True, return_sequences=True, name="one")(given)
    x = L.Bidirectional(L.LSTM(4, stateful=True), name="both")(x)
    model = seeded(keras.Model(given, L.Dense(2, name="after")(x)))
    x = np.random.default_rng(0).normal(size=(3, STEPS, 3)).astype("float32")
    first = np.asarray(model(x))
    before = [np.asarray(state) for state in model.get_layer("one").states]
    small = prune_filters(model, plan_filters(model, ratio=0.3))
    assert all(np.array_equal(a, b) for a, b in zip(before, model.get_layer("one").states, strict=True))
    assert all((np.asarray(state) == 0).all() for state in small.get_layer("one").states)
    assert np.asarray(small(x)).shape == first.shape


def test_a_layer_that_is_called_twice_is_tied_to_both_inputs():
    keras.utils.set_random_seed(0)
    given = keras.Input((STEPS, 3), name="given")
    layer, step = L.LSTM(6, name="layer"), L.TimeDistributed(L.Dense(4), name="step")
    a, b = L.Dense(5, name="a")(given), L.Dense(5, name="b")(given)
    ends = [layer(step(a)), layer(step(b))]
    model = seeded(keras.Model(given, L.Dense(2, name="after")(L.Subtract()(ends))))
    traced = trace(model)
    assert [set(group.layers) for group in traced.groups] == [{"a", "b"}, {"step"}, {"layer"}]
    prune_filters(model, plan_filters(model, ratio=0.3))


class Mystery(L.SimpleRNNCell):
    """A cell that kpipe knows nothing of."""


def test_a_cell_without_a_rule_is_named():
    given = keras.Input((STEPS, 3), name="given")
    model = keras.Model(given, L.Dense(2)(L.RNN(Mystery(4, name="odd"), name="layer")(L.Dense(4, name="x")(given))))
    with pytest.raises(SurgeryError, match=r"'layer'.*class Mystery of 'odd' inside has no rule"):
        trace(model)
    assert "class Mystery" in trace(model, unknown="freeze").frozen["x"]


FORMULAS = {  # multiply-accumulates of a layer with 6 units on 5 steps of 4 channels
    "simple": (L.SimpleRNN(6), 5 * (4 + 6) * 6),
    "lstm": (L.LSTM(6), 5 * (4 + 6) * 4 * 6),
    "gru": (L.GRU(6), 5 * (4 + 6) * 3 * 6),
    "both": (L.Bidirectional(L.GRU(6)), 2 * 5 * (4 + 6) * 3 * 6),
    "stacked": (L.RNN([L.LSTMCell(7), L.GRUCell(6)]), 5 * ((4 + 7) * 4 * 7 + (7 + 6) * 3 * 6)),
    "each": (L.TimeDistributed(L.Dense(6)), 5 * 4 * 6),
    "einsum": (L.EinsumDense("abc,cde->abde", (5, 2, 6)), 5 * 4 * 2 * 6),
}


@pytest.mark.parametrize("layer, expected", FORMULAS.values(), ids=FORMULAS)
def test_multiplications_against_formulas(layer, expected):
    given = keras.Input((5, 4), name="given")
    assert trace(keras.Model(given, layer(given))).macs() == expected
    if not isinstance(layer, L.EinsumDense):
        opened = keras.Input((None, 4), name="given")
        assert trace(keras.Model(opened, type(layer).from_config(layer.get_config())(opened))).macs() is None


def test_multiplications_of_convolutional_cells():
    given = keras.Input((3, 8, 8, 2), name="maps")
    model = keras.Model(given, L.ConvLSTM2D(5, 3, strides=2)(given))  # maps of 3 x 3
    assert trace(model).macs() == 3 * 9 * 9 * 4 * 5 * (2 + 5)


@pytest.mark.slow
def test_a_gru_classifier_at_half_its_width():
    keras.utils.set_random_seed(0)
    tokens = keras.Input((STEPS,), dtype="int32", name="tokens")
    x = L.Embedding(20, 8, mask_zero=True, name="embedding")(tokens)
    x = L.Bidirectional(L.GRU(8, return_sequences=True, dropout=0.1), name="both")(x)
    x = L.GRU(6, name="last")(x)
    model = seeded(keras.Model(tokens, L.Dense(3, name="logits")(L.Dense(8, activation="gelu", name="hidden")(x))))
    plan = plan_filters(model, ratio=0.5)
    assert [(g.name, g.kept) for g in plan.groups] == [("embedding", 4), ("both", 4), ("last", 3), ("hidden", 4)]
    small = prune_filters(model, plan)
    assert small.count_params() == 20 * 4 + 2 * 3 * 4 * (4 + 4 + 2) + 3 * 3 * (8 + 3 + 2) + 4 * (3 + 1) + 3 * (4 + 1)
    small.compile("adam", "mse")
    assert np.isfinite(small.fit(samples(small, 8)[0], np.zeros((8, 3)), verbose=0).history["loss"][0])
