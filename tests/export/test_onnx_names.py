import keras
import numpy as np
import pytest

from kpipe.export import export
from kpipe.export.onnx.names import rename
from tests.models import ZOO, build, samples


@pytest.mark.sweep(1)
@pytest.mark.parametrize("name", ["residual", "concat", "depthwise", "siamese"])
def test_the_same_model_gives_the_same_bytes(name, tmp_path):
    first = export(build(name), tmp_path / "first.onnx")
    for _ in range(3):  # what was made and written in between moves the counters behind automatic names
        keras.Sequential([keras.Input((2,)), keras.layers.Dense(2)])
    second = export(build(name), tmp_path / "second.onnx")
    assert first.path.read_bytes() == second.path.read_bytes()
    # The control: another seed gives other weights, and other bytes.
    assert export(build(name, seed=1), tmp_path / "other.onnx").path.read_bytes() != first.path.read_bytes()


@pytest.mark.sweep(4)
@pytest.mark.parametrize("name", list(ZOO))
def test_renamed_graphs_compute_the_same(name, tmp_path):
    import onnxruntime

    model = build(name)
    file = export(model, tmp_path / "model.onnx")
    session = onnxruntime.InferenceSession(str(file.path))
    inputs = samples(model)
    feed = {end.name: array for end, array in zip(session.get_inputs(), inputs, strict=True)}
    expected = keras.tree.flatten(model(inputs if len(inputs) > 1 else inputs[0], training=False))
    for got, want in zip(session.run(None, feed), expected, strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("what", ["x", "a"])
def test_what_is_computed_of_an_island_alone_is_part_of_it_whatever_it_takes_sizes_from(what):
    """c = reshape(a, sizes of x) · a, a of an island; the control takes x, which is of none, in the place of a."""
    from onnx import TensorProto, helper, numpy_helper

    nodes = [
        helper.make_node("Shape", ["x"], ["size"], name="size"),
        helper.make_node("Concat", ["size", "ones"], ["sizes"], name="sizes", axis=0),
        helper.make_node("Relu", ["x"], ["r"], name="rounded/Relu"),
        helper.make_node("Tanh", ["r"], ["a"], name="left_out/Tanh"),
        helper.make_node("Reshape", [{"x": "r", "a": "a"}[what], "sizes"], ["b"], name="Reshape__7"),
        helper.make_node("Mul", ["b", "a"], ["c"], name="Mul__8"),
    ]
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in ("x", "c")]
    ones = numpy_helper.from_array(np.ones(1, np.int64), "ones")
    graph = helper.make_graph(nodes, "made", ends[:1], ends[1:], [ones])
    rename(graph, islands=["left_out"])
    within = {node.op_type for node in graph.node if node.name.startswith("island_")}
    assert within == ({"Tanh", "Reshape", "Mul"} if what == "a" else {"Tanh"})


def test_states_that_an_island_makes_of_sizes_alone_are_part_of_it():
    """As a bidirectional layer makes its first states: zeros as many as there are samples."""
    from onnx import TensorProto, helper

    nodes = [
        helper.make_node("Shape", ["x"], ["size"], name="left_out/Shape"),
        helper.make_node("Concat", ["size", "size"], ["states"], name="Concat__7", axis=0),
        helper.make_node("Cast", ["states"], ["y"], name="Cast__8", to=TensorProto.FLOAT),
    ]
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in ("x", "y")]
    graph = helper.make_graph(nodes, "made", ends[:1], ends[1:])
    rename(graph, islands=["left_out"])
    assert all(node.name.startswith("island_") for node in graph.node)
