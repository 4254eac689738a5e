"""What TFMOT itself says and does, on tf_keras; run in a process of its own.

`python tfmot_oracle.py FOLDER` writes `answers.npz`: its public names, its masks (one array of shape (STEPS, *shape) a
case, whose row t is the mask after the forward pass of step t + 1), the values of schedules, its verdicts on networks,
and what is left after a user's script.
"""

import os
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from tests.legacy.policy_models import MODELS
from tests.unstructured import tfmot_cases
from tests.unstructured.tfmot_cases import APART, SAME, Case

SCHEDULES = {
    "constant": ("ConstantSparsity", (0.7, 3, 18, 5)),
    "endless": ("ConstantSparsity", (0.7, 2)),
    "cubic": ("PolynomialDecay", (0.2, 0.8, 4, 24, 3, 5)),
    "even": ("PolynomialDecay", (0.0, 0.9, 0, 30, 1, 3)),
    "square, ragged": ("PolynomialDecay", (0.2, 0.9, 3, 30, 2, 7)),
    "constant, ragged": ("ConstantSparsity", (0.5, 0, 21, 4)),
}
"""Class and arguments. A ragged way is no whole number of updates: TFMOT makes none at its end."""

STEPS = range(1, 130)


def answers() -> dict[str, Any]:
    """Ask TFMOT."""
    import tensorflow_model_optimization as tfmot
    import tf_keras

    from tests.legacy import tfmot_script

    public = tfmot.sparsity.keras
    found: dict[str, Any] = {"names": [name for name in dir(public) if not name.startswith("_")]}
    for name, case in (SAME | APART).items():
        found[f"mask: {name}"] = masks(case)
    for name, (kind, arguments) in SCHEDULES.items():
        schedule = getattr(public, kind)(*arguments)
        found[f"schedule: {name}"] = np.array([[float(part) for part in schedule(step)] for step in STEPS])
    for name, make in MODELS.items():
        policy, model = public.PruneForLatencyOnXNNPack(), make(tf_keras)
        try:
            policy.ensure_model_supports_pruning(model)
            found[f"policy: {name}"] = sum(policy.allow_pruning(layer) for layer in model.layers)
        except ValueError:
            found[f"policy: {name}"] = -1
    for i, kernel in enumerate(tfmot_script.run(tempfile.mkdtemp())):
        found[f"script: {i}"] = kernel
    return found


def masks(case: Case) -> np.ndarray:
    """Give TFMOT's mask after each step."""
    import tensorflow_model_optimization as tfmot
    import tf_keras

    kind, arguments = tfmot_cases.SCHEDULES[case.schedule]
    weight = case.weight()
    if len(case.shape) == 2:
        layer = tf_keras.layers.Dense(case.shape[-1], use_bias=False)
    else:
        layer = tf_keras.layers.Conv2D(case.shape[-1], case.shape[:2], use_bias=False)
    wrapped = tfmot.sparsity.keras.prune_low_magnitude(
        layer,
        getattr(tfmot.sparsity.keras, kind)(**arguments),
        block_size=case.block,
        block_pooling_type=case.pooling,
        sparsity_m_by_n=case.zeros_of,
    )
    inputs = np.zeros((1, *case.shape[:-1]), "float32")
    wrapped.build(inputs.shape)
    layer.kernel.assign(weight)
    wrapped.pruning_step.assign(0)
    found = []
    for _ in range(tfmot_cases.STEPS):
        wrapped(inputs, training=True)
        ((_, mask, _),) = wrapped.pruning_vars
        found.append(mask.numpy() != 0)
    return np.stack(found)


if __name__ == "__main__":
    os.environ["TF_USE_LEGACY_KERAS"] = "1"
    np.savez(Path(sys.argv[1]) / "answers.npz", **answers())
