"""What is gathered, and what is taken from a training as it is."""

from types import SimpleNamespace

import numpy as np
import pytest

from kpipe.errors import KpipeError
from kpipe.saliency import FROM_DATA, FROM_LABELS, criterion_of, gather
from kpipe.saliency.evidence import PASSES, Evidence
from tests.models import build, samples

MODEL = build("dense")
X, Y = samples(MODEL, 8)[0], np.arange(8) % 4
KERNELS = [(f"{n}/kernel", "kernel", MODEL.get_layer(n).kernel) for n in ("hidden1", "hidden2")]


def test_the_fields_are_those_of_the_evidence():
    assert set(PASSES) == set(Evidence.__dataclass_fields__) - {"role", "weight", "rng"}
    assert set(FROM_LABELS) < set(FROM_DATA) < set(PASSES)


@pytest.mark.parametrize("needs", [(), ("grad",), ("inputs", "grad_sq")])
def test_what_is_asked_for_is_there_and_nothing_else(needs):
    found = gather(MODEL, KERNELS, needs, (X, Y), "mse" if not needs else "sparse_categorical_crossentropy")
    assert list(found) == ["hidden1/kernel", "hidden2/kernel"]
    for (_, role, variable), evidence in zip(KERNELS, found.values(), strict=True):
        assert evidence.role == role and np.array_equal(evidence.weight, variable.numpy())
        assert {field for field in PASSES if getattr(evidence, field) is not None} == set(needs)
        for field in needs:
            assert np.broadcast_shapes(getattr(evidence, field).shape, variable.shape) == tuple(variable.shape)


def test_weights_may_be_objects_and_evidence_cannot_be_written_to():
    path, role, variable = KERNELS[0]
    target = SimpleNamespace(path=path, role=role, variable=variable)
    found = gather(MODEL, [target])[path]
    before = variable.numpy()
    with pytest.raises(ValueError, match="read-only"):
        found.weight[:] = 7
    assert np.array_equal(found.weight, before) and np.array_equal(variable.numpy(), before)


def test_what_a_training_observed_needs_no_data():
    moved = {path: {"movement": np.full(v.shape, 2.0, "float32")} for path, _, v in KERNELS}
    found = gather(MODEL, KERNELS, criterion_of("movement")[1]["needs"], observed=moved)
    assert all(evidence.movement.min() == 2.0 for evidence in found.values())
    given = {"hidden1/kernel": {"inputs": np.ones((12, 1)), "grad": np.zeros(())}}
    mixed = gather(MODEL, KERNELS, "inputs", X, observed=given)  # the other one comes from the data
    assert mixed["hidden1/kernel"].inputs.max() == 1.0 and mixed["hidden1/kernel"].grad is None
    assert mixed["hidden2/kernel"].inputs.shape == (16, 1)
    with pytest.raises(KpipeError, match="needs data"):
        gather(MODEL, KERNELS, "inputs", observed=given)


def test_what_cannot_be_gathered_is_said():
    with pytest.raises(KpipeError, match=r"follows the weights through a training.*kpipe\.callbacks\.WeightPruning"):
        gather(MODEL, KERNELS, "movement", (X, Y), "mse")
    with pytest.raises(KpipeError, match=r"needs 'gard'.*Did you mean 'grad'"):
        gather(MODEL, KERNELS, "gard")
    function = lambda evidence: evidence.weight  # noqa: E731
    function.needs = ("grad", "curvture")
    with pytest.raises(KpipeError, match=r"needs 'curvture'.*Did you mean 'curvature'"):
        criterion_of(function)


def test_half_precision_weights_are_scored_in_float32():
    import keras

    layer = keras.layers.Dense(2, dtype="bfloat16")
    model = keras.Sequential([keras.Input((3,)), layer])
    found = gather(model, [("k", "kernel", layer.kernel)])["k"]
    assert found.weight.dtype == np.float32 and np.array_equal(found.weight, layer.kernel.numpy().astype("float32"))
