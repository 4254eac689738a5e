"""What each layer's rounding costs, against models put together by hand, and plans that hold a budget."""

import json
from typing import Any

import keras
import numpy as np
import pytest
from keras import layers as L

import kpipe
from kpipe.errors import KpipeError
from kpipe.export.verify import predict
from kpipe.fake_quant import QuantizedWeights
from kpipe.fake_quant.affine import on_grid
from kpipe.quantize.damage import LayerDamage, QuantizationSensitivity
from tests.models import build, samples


def net() -> Any:
    keras.utils.set_random_seed(3)
    layers = [L.Dense(16, "relu", name="a"), L.Dense(16, "relu", name="b"), L.Dense(4, "softmax", name="c")]
    return keras.Sequential([keras.Input((6,), name="x"), *layers])


def labelled(model: Any, count: int = 256) -> tuple[np.ndarray, np.ndarray]:
    x = np.random.default_rng(0).normal(size=(count, 6)).astype("float32")
    return x, np.asarray(model(x)).argmax(-1)


def test_weights_alone_are_those_of_a_model_with_one_kernel_on_its_grid():
    model = net()
    x, _ = labelled(model)
    found = kpipe.quantization_sensitivity(model, x, "int4")
    exact = np.asarray(model(x))
    for row in found.layers:
        kernel = model.get_layer(row.layer).kernel
        before = kernel.numpy()
        kernel.assign(on_grid(before, (1,), 4))
        away = np.sqrt(((np.asarray(model(x)) - exact) ** 2).sum() / (exact**2).sum())
        kernel.assign(before)
        assert row.value == row.damage == pytest.approx(away, rel=1e-4)
        assert (row.bits, row.weights) == (4, before.size)
    assert [row.damage for row in found.layers] == sorted((row.damage for row in found.layers), reverse=True)
    assert found.baseline == pytest.approx(0.0, abs=1e-6)


def test_activations_are_rounded_with_their_layer():
    model = net()
    x, _ = labelled(model)
    clipped = kpipe.quantization_sensitivity(model, x, "int8", observer=lambda seen, bits: (0.0, 0.1 * seen.high))
    plain = kpipe.quantization_sensitivity(model, x, "int8")
    damage = [{row.layer: row.damage for row in scan.layers} for scan in (clipped, plain)]
    assert damage[0]["a"] > 10 * damage[1]["a"] > 0


@pytest.mark.sweep(1)
@pytest.mark.parametrize("name", ["depthwise", "siamese", "conv_bn"])
def test_every_layer_with_weights_has_a_row(name):
    model = build(name)
    x = samples(model, 32)
    given = x if len(x) > 1 else x[0]
    found = kpipe.quantization_sensitivity(model, given)
    made: Any = kpipe.quantize(model, calibration=given)
    kernels = [k for one in made.layers if isinstance(one, QuantizedWeights) for k in one.kernels()]
    assert sum(row.weights for row in found.layers) == sum(int(np.prod(k.variable.shape)) for k in kernels)
    assert all(0 < row.damage < 0.1 for row in found.layers)


def test_loss_and_accuracy_are_those_of_keras():
    model = net()
    x, y = labelled(model)
    model.compile(loss="sparse_categorical_crossentropy", metrics=["accuracy"])
    loss, accuracy = model.evaluate(x, y, verbose=0)
    for metric, value in (("loss", loss), ("accuracy", accuracy)):
        found = kpipe.quantization_sensitivity(model, (x, y), "int4", metric=metric)
        assert found.baseline == pytest.approx(value, rel=1e-4)
        assert max(row.damage for row in found.layers) > 0


def test_a_scan_is_a_table_and_a_file(tmp_path):
    rows = (LayerDamage("block/conv", 4, 1728, 0.25, 0.25), LayerDamage("fc", 4, 20, 0.125, 0.125))
    scan = QuantizationSensitivity("distance", "w4a8", 0.0, rows)
    assert str(scan).splitlines() == [
        "distance in float: 0; each layer alone rounded as in w4a8",
        "layer       bits  weights  distance    damage",
        "block/conv     4    1,728      0.25  +0.25000",
        "fc             4       20     0.125  +0.12500",
    ]
    scan.save(tmp_path / "scan.json")
    assert json.loads((tmp_path / "scan.json").read_text())["layers"][1] == {
        "layer": "fc",
        "bits": 4,
        "weights": 20,
        "value": 0.125,
        "damage": 0.125,
    }
    with pytest.raises(KpipeError, match="Cannot write"):
        scan.save(tmp_path / "nowhere" / "scan.json")


def fragile() -> Any:
    """A net whose second layer cannot bear coarse weights: each channel has one great weight on an input that is 0."""
    model = net()
    kernel = model.get_layer("b").kernel.numpy()
    bias = model.get_layer("a").bias.numpy()
    bias[0] = -100.0
    kernel[0] = 5.0
    model.get_layer("a").bias.assign(bias)
    model.get_layer("b").kernel.assign(kernel)
    return model


def test_a_plan_spares_the_fragile_layer_alone_and_holds_the_budget(tmp_path):
    model = fragile()
    x, y = labelled(model)
    plan = kpipe.plan_quantization(model, (x, y), "int4", max_drop=0.1)
    assert plan.bits == {"^b$": 8}
    quantized: Any = kpipe.quantize(model, "int4", bits=plan.bits)
    assert float((predict(quantized, [x])[0].argmax(-1) == y).mean()) == pytest.approx(plan.value)
    without: Any = kpipe.quantize(model, "int4")
    assert (predict(without, [x])[0].argmax(-1) == y).mean() < plan.baseline - 0.1 <= plan.value
    plan.save(tmp_path / "plan.json")
    assert json.loads((tmp_path / "plan.json").read_text())["bits"] == {"^b$": 8}
    assert "other bits are needed in ^b$ 8" in str(plan)


def test_eight_bits_fall_back_to_float():
    model = fragile()
    kernel = model.get_layer("b").kernel
    kernel.assign(np.where(kernel.numpy() == 5.0, 2000.0, kernel.numpy()))
    x, y = labelled(model)
    plan = kpipe.plan_quantization(model, (x, y), "int8", max_drop=0.05)
    assert plan.bits == {"^b$": None}
    first = kpipe.plan_quantization(model, (x, y), "int4", max_drop=0.2)
    assert first.bits["^b$"] is None and {width for _, width, _ in first.tried} == {"8", "float"}


def test_a_plan_goes_on_from_what_it_is_told():
    model = fragile()
    x, y = labelled(model)
    plan = kpipe.plan_quantization(model, (x, y), "int4", max_drop=0.1, bits={"b": 8})
    assert plan.bits == {"b": 8} and plan.tried[0][0] == 0


def test_a_budget_that_cannot_be_held_is_refused_with_the_figures():
    model = net()
    x, y = labelled(model)
    exact = np.asarray(model(x)).std()
    with pytest.raises(
        KpipeError, match=r"int8 of .* cannot hold a drop of 0: .* 1 in float, and 0.5 at best, with 0 of 3"
    ):
        kpipe.plan_quantization(model, (x, y), max_drop=0, metric=lambda y, p: 1.0 if p.std() == exact else 0.5)
    with pytest.raises(KpipeError, match="max_drop is -1"):
        kpipe.plan_quantization(model, (x, y), max_drop=-1)
    with pytest.raises(KpipeError, match="needs labels"):
        kpipe.plan_quantization(model, x)
