import keras
import numpy as np
import pytest

from kpipe.export import export
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
