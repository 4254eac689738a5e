"""Models of keras.applications, one of each family: cut, compared, saved, trained for a step. `pytest -m slow`."""

import keras
import numpy as np
import pytest

from kpipe.structured import plan_filters, prune_filters
from kpipe.structured.scopes import SCOPES

# Small images where the family takes them: what is held here is the graph.
FAMILIES = {
    "VGG16": 64,
    "ResNet50V2": 64,
    "DenseNet121": 64,
    "InceptionV3": 80,
    "InceptionResNetV2": 80,
    "Xception": 80,
    "NASNetMobile": 64,
    "MobileNet": 64,
    "MobileNetV2": 64,
    "MobileNetV3Small": 64,
    "EfficientNetV2B0": 64,
    "ConvNeXtTiny": 64,
}

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module", params=FAMILIES)
def model(request):
    keras.utils.set_random_seed(0)
    size = FAMILIES[request.param]
    made = vars(keras.applications)[request.param](weights=None, input_shape=(size, size, 3), classes=10)
    rng = np.random.default_rng(0)
    for variable in made.weights:
        if variable.name in ("gamma", "moving_variance", "variance"):
            variable.assign(rng.uniform(0.5, 1.5, variable.shape))
        elif len(variable.shape) == 1:
            variable.assign(rng.normal(0.0, 0.1, variable.shape))
    for layer in made.layers:
        if isinstance(layer, keras.layers.Normalization):
            layer.finalize_state()  # it computes with what it makes of its weights
    yield made
    keras.backend.clear_session()


@pytest.mark.parametrize("scope", SCOPES)
@pytest.mark.parametrize("round_to", [1, 8])
@pytest.mark.parametrize("ratio", [0.3, 0.5])
def test_a_model_of_every_family_is_cut(model, ratio, round_to, scope, tmp_path):
    plan = plan_filters(model, ratio=ratio, round_to=round_to, scope=scope)
    assert all(group.kept >= 1 for group in plan.groups)
    assert all(group.kept % round_to == 0 or not group.removed for group in plan.groups)
    small = prune_filters(model, plan)  # raises unless it equals the masked original
    assert small.count_params() == plan.after["params"] < (1 - 0.5 * ratio) * model.count_params()
    assert small.output_shape == model.output_shape

    small.save(tmp_path / "small.keras")
    images = np.random.default_rng(1).normal(0.0, 1.0, (2, *model.input_shape[1:])).astype("float32")
    answer = np.asarray(small(images, training=False))
    assert np.array_equal(keras.models.load_model(tmp_path / "small.keras")(images, training=False), answer)
    assert np.abs(answer - np.asarray(model(images, training=False))).max() > 1e-6  # the comparison can fail

    small.compile("sgd", "categorical_crossentropy", run_eagerly=True)
    assert np.isfinite(small.fit(images, np.eye(10)[:2], verbose=0).history["loss"]).all()
