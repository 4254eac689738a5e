"""Whether two models agree: what they answer from rest, and how far that is apart."""

from collections.abc import Callable, Sequence
from typing import Any

import keras
import numpy as np

from kpipe.checks import broken_in
from kpipe.copies import to_float64
from kpipe.errors import SurgeryError
from kpipe.graph import answer_at_rest, before_probabilities, random_inputs
from kpipe.layers import leaves

Answering = Callable[[], Sequence[Any]]
TOLERANCE = 1e-4
"""Largest difference allowed, relative to the largest value of an output."""
SMALLEST = 1e-6
"""An output of which no value is larger is compared with this: what is left of it may be rounding alone."""
EXACT = 1e-6
"""So far may two models be apart in float64 that are further apart in their own precision."""
ROUNDING = {"float16": 2.0**-10, "bfloat16": 2.0**-7}
"""Relative distance of neighbouring numbers in half precision."""


def tolerance_for(model: keras.Model, tolerance: float = TOLERANCE) -> float:
    """Give the difference that is allowed; layers that compute in half precision may be some units of theirs apart."""
    return max(tolerance, 16 * max((ROUNDING.get(layer.compute_dtype, 0.0) for layer in leaves(model)), default=0))


def settled(
    model: keras.Model,
    twin: keras.Model,
    compare: Callable[[keras.Model, keras.Model], float],
    tolerance: float = TOLERANCE,
) -> tuple[float, str]:
    """Compare two models; where they are apart, once more in float64, should rounding alone have taken them there.

    A deep model may take a difference of a rounding far: with random norms EfficientNetV2B3 makes 2e-4 of it.

    Args:
        model: Whose answer is expected.
        twin: The other one.
        compare: Gives the difference of two such models.
        tolerance: Largest difference allowed; see `tolerance_for`.

    Returns:
        The difference. Where it is beyond the tolerance, but at most `EXACT` in float64: that in float64. Then what is
        to be said where it is beyond the tolerance all the same.

    Example:
        >>> model = keras.Sequential([keras.Input((3,)), keras.layers.ReLU()])
        >>> settled(model, model, lambda model, twin: {"float32": 0.1, "float64": 1e-9}[model.layers[0].compute_dtype])
        (1e-09, '')
    """
    worst = compare(model, twin)
    if worst <= tolerance_for(model, tolerance) or not np.isfinite(worst):
        return worst, ""
    try:
        double = to_float64(model)
        exact = compare(double, to_float64(twin))
    except Exception as fault:  # layers of the user's own need not compute in float64, and raise what they like
        why = next(iter(str(fault).splitlines()), "")
        return worst, f" They could not be compared in float64: {type(fault).__name__}: {why[:200]}"
    if exact <= EXACT:
        return exact, ""
    return worst, f" In float64 it is {exact:.3g}.{_on_rounding(double)}"


LEAST = 2.0**-50
"""Some roundings of float64."""


def _on_rounding(double: keras.Model) -> str:
    """Say so, where rounding alone moves what a model of float64 answers to random input; else nothing."""
    inputs = random_inputs(double)
    nearby = [array * np.float64(1 + LEAST) if array.dtype.kind == "f" else array for array in inputs]
    moved = difference(double, answer_at_rest(double, inputs), answer_at_rest(double, nearby))
    if moved <= EXACT:
        return ""
    return (
        f" Rounding alone moves what {double.name!r} answers to random input by {moved:.2g} there, so that this may be "
        "no fault. Leave the check out (check=False), and compare on data of your own."
    )


def difference(model: keras.Model, expected: Sequence[Any], got: Sequence[Any]) -> float:
    """Give the largest difference of two answers, relative to the largest value of each output; NaN for one of NaN.

    Args:
        model: Whose answer is expected.
        expected: One array for each output.
        got: Likewise.

    Raises:
        SurgeryError: When what is expected is not finite, so that nothing can be compared with it; it names
            the weights that are not finite.

    Example:
        >>> difference(keras.Sequential(), [np.array([4.0, 2.0])], [np.array([4.0, 3.0])])
        0.25
    """
    before, after = ([np.asarray(y, "float64") for y in answer] for answer in (expected, got))
    if not all(np.isfinite(y).all() for y in before):
        if broken := broken_in(model):
            raise SurgeryError(f"{broken} {model.name!r} answers with such values, so that nothing can be compared.")
        raise SurgeryError(
            f"{model.name!r} itself answers with values that are not finite, though all of its weights are, so that "
            "nothing can be compared with them. Where the input was random, leave the check out (check=False), and "
            "compare on data of your own."
        )
    scales = [max(SMALLEST, float(np.abs(y).max(initial=0.0))) for y in before]
    away = [np.abs(a - b).max(initial=0.0) / scale for a, b, scale in zip(before, after, scales, strict=True)]
    return float(np.max(away))  # unlike max(), it hands on what is not a number


def apart(model: keras.Model, twin: keras.Model, expect: Answering, answer: Answering) -> float:
    """Give the largest difference of two models, by the logits too where both end in probabilities.

    Logits make it stricter alone: those that are not finite are left to what is made of them.

    Args:
        model: Whose answer is expected.
        twin: The other one.
        expect: Gives the first's answers, one array for each output.
        answer: Likewise the other's.

    Returns:
        The difference, as `difference` gives it.

    Raises:
        SurgeryError: When what is expected is not finite.
    """
    with before_probabilities(model, twin) as left_out:
        before, after = expect(), answer()
    made = [[y if f is None else f(y) for f, y in zip(left_out, one, strict=True)] for one in (before, after)]
    worst = difference(model, *made)
    logits = [pair for f, *pair in zip(left_out, before, after, strict=True) if f is not None and _finite(*pair)]
    return float(np.max([worst, *(difference(model, [a], [b]) for a, b in logits)]))


def _finite(*arrays: Any) -> bool:
    return all(np.isfinite(np.asarray(array, "float64")).all() for array in arrays)
