"""What TFMOT itself says and does, on tf_keras; run in a process of its own with TF_USE_LEGACY_KERAS=1.

`python tfmot_oracle.py FILE` writes the answers with NumPy: its public names, masks at every step, the values of
schedules, its verdicts on networks, and what is left after a user's script.
"""

import sys
import tempfile
from typing import Any

import numpy as np

from tests.legacy.policy_models import MODELS
from tests.unstructured.tfmot_process import APART, SAME, masks

CASES = {
    name: (SAME | APART)[name]
    for name in (
        *("dense, constant", "convolution, polynomial", "2x2 AVG, polynomial", "4x1 MAX, constant", "2x2 AVG, ragged"),
        *("2:4 dense", "2:4 convolution", "1:4 dense", "an odd number of entries, half of them", "equal weights"),
    )
}
"""Those whose masks are compared, among the cases of `kpipe.patterns`."""

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
    for name, case in CASES.items():
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


if __name__ == "__main__":
    np.savez(sys.argv[1], **answers())
