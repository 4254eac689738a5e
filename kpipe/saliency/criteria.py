"""Criteria: how much each entry of a weight matters. A new criterion is one function of `Evidence`."""

from collections.abc import Callable
from dataclasses import fields
from typing import Any

import numpy as np

from kpipe.checks import broken_weights, not_finite
from kpipe.errors import KpipeError
from kpipe.layers import KERNEL_ROLES
from kpipe.registry import Registry
from kpipe.saliency.evidence import Evidence, fields_of

Criterion = Callable[[Evidence], np.ndarray | None]
"""Evidence -> elementwise scores shaped like the weight (higher: keep), or None: not mine to judge."""

CRITERIA: Registry[Criterion] = Registry("criterion")
"""Facts of a criterion: `needs`, the names of the fields of `Evidence` that it looks at beside the weight (a name or
several), `comparable`: its scores compare between layers as they are, and for channels `reduction`, how the scores by
several weights become one ("sum" when not said). `criterion_of` reads them."""

CHANNEL_CRITERIA: Registry[Criterion] = Registry("channel criterion")
"""Criteria that judge channels whole; see `kpipe.saliency.channels`."""

_UNSAID = {"needs": (), "comparable": False}


@CRITERIA("magnitude", needs=(), comparable=False)
@CRITERIA("l1", needs=(), comparable=False)
def l1(evidence: Evidence) -> np.ndarray | None:
    """Score by |w|: the L1 norm once summed over a channel; "magnitude" is its name for weights.

    Example:
        >>> import numpy as np
        >>> l1(Evidence("kernel", np.array([1.0, -2.0]), None, None, np.random.default_rng(0))).tolist()
        [1.0, 2.0]

    References:
        Han et al., Learning both weights and connections (2015), https://arxiv.org/abs/1506.02626; for filters Li et
        al., Pruning filters for efficient ConvNets (2017), https://arxiv.org/abs/1608.08710
    """
    return np.abs(evidence.weight) if evidence.role in KERNEL_ROLES else None


@CRITERIA("l2", needs=(), comparable=False)
def l2(evidence: Evidence) -> np.ndarray | None:
    """Score by w²: the squared L2 norm once summed over a channel.

    Example:
        >>> import numpy as np
        >>> l2(Evidence("kernel", np.array([1.0, -2.0]), None, None, np.random.default_rng(0))).tolist()
        [1.0, 4.0]
    """
    return np.square(evidence.weight) if evidence.role in KERNEL_ROLES else None


@CRITERIA("random", needs=(), comparable=True)
def random(evidence: Evidence) -> np.ndarray | None:
    """Score by seeded uniform chance: the floor that any other criterion has to beat.

    Example:
        >>> import numpy as np
        >>> draws = [random(Evidence("kernel", np.ones(3), None, None, np.random.default_rng(0))) for _ in range(2)]
        >>> bool((draws[0] == draws[1]).all())
        True
    """
    return evidence.rng.random(evidence.weight.shape, evidence.weight.dtype) if evidence.role in KERNEL_ROLES else None


@CRITERIA("taylor", needs=("grad",), comparable=True)
def taylor(evidence: Evidence) -> np.ndarray | None:
    """Score by |w · dL/dw|: the first-order change of the loss when the entry goes, on a network that is trained.

    Example:
        >>> import numpy as np
        >>> w, g = np.array([1.0, -2.0]), np.array([-3.0, 0.5])
        >>> taylor(Evidence("kernel", w, g, None, np.random.default_rng(0))).tolist()
        [3.0, 1.0]

    References:
        Molchanov et al., Pruning convolutional neural networks (2017), https://arxiv.org/abs/1611.06440
    """
    if evidence.grad is None or evidence.role == "statistic":
        return None
    scores = evidence.weight * evidence.grad
    return np.abs(scores, out=scores)


@CRITERIA("snip", needs=("grad",), comparable=True)
def snip(evidence: Evidence) -> np.ndarray | None:
    """Score by connection sensitivity |w · dL/dw| at initialisation, before any training.

    In use it is not `taylor`: it is taken once, on a few batches, of a network that has just been initialised (with
    variance scaling), to train only what is left, best with `scope="global"`; at the end of a training the first order
    says little, because the gradient is near zero there. In form the two are one. The paper divides every score by the
    sum of all over the network: one number for all, which changes no ranking, within a layer or over all, and is left
    out here.

    Example:
        >>> import numpy as np
        >>> w, g = np.array([1.0, -2.0]), np.array([-3.0, 0.5])
        >>> snip(Evidence("kernel", w, g, None, np.random.default_rng(0))).tolist()
        [3.0, 1.0]

    References:
        Lee, Ajanthan and Torr, SNIP: single-shot network pruning (2019), https://arxiv.org/abs/1810.02340
    """
    return taylor(evidence)


@CRITERIA("fisher", needs=("grad_sq",), comparable=True)
def fisher(evidence: Evidence) -> np.ndarray | None:
    """Score by ½ · w² · E[(dl/dw)²], l the loss of one sample: the rise of the loss, curvature by squared gradients.

    The mean square gradient of single samples is the empirical Fisher information; where the network predicts the
    labels' distribution it is the Hessian of the log loss. One pass back a sample.

    Example:
        >>> import numpy as np
        >>> w, squares = np.array([1.0, -2.0]), np.array([8.0, 0.5])
        >>> fisher(Evidence("kernel", w, None, squares, np.random.default_rng(0))).tolist()
        [4.0, 1.0]

    References:
        Theis et al., Faster gaze prediction with dense networks and Fisher pruning (2018),
        https://arxiv.org/abs/1801.05787
    """
    return _second_order(evidence, evidence.grad_sq)


@CRITERIA("obd", needs=("curvature",), comparable=True)
def obd(evidence: Evidence) -> np.ndarray | None:
    """Score by ½ · h · w², Optimal Brain Damage: the rise of the loss at its minimum to second order.

    h is the exact diagonal of the Gauss-Newton matrix of the mean loss. One pass back for each output of each sample.

    Example:
        >>> import numpy as np
        >>> w, h = np.array([1.0, -2.0]), np.array([8.0, 0.5])
        >>> obd(Evidence("kernel", w, None, None, np.random.default_rng(0), curvature=h)).tolist()
        [4.0, 1.0]

    References:
        LeCun, Denker and Solla, Optimal Brain Damage (1990)
    """
    return _second_order(evidence, evidence.curvature)


def _second_order(evidence: Evidence, curvature: np.ndarray | None) -> np.ndarray | None:
    if curvature is None or evidence.role == "statistic":
        return None
    scores = np.square(evidence.weight)
    scores *= curvature
    scores *= 0.5
    return scores


@CRITERIA("movement", needs=("movement",), comparable=True)
def movement(evidence: Evidence) -> np.ndarray | None:
    """Score by -Σ w · dL/dw over the steps of a training: high for weights that move away from zero.

    Example:
        >>> import numpy as np
        >>> w, moved = np.array([1.0, -2.0]), np.array([-0.5, 0.25])
        >>> movement(Evidence("kernel", w, None, None, np.random.default_rng(0), movement=moved)).tolist()
        [-0.5, 0.25]

    References:
        Sanh, Wolf and Rush, Movement pruning: adaptive sparsity by fine-tuning (2020), https://arxiv.org/abs/2005.07683
    """
    return None if evidence.role == "statistic" else evidence.movement


@CRITERIA("wanda", needs=("inputs",), comparable=False)
def wanda(evidence: Evidence) -> np.ndarray | None:
    """Score by |w| · ‖x‖₂, x all that the weight multiplies on the data: what it adds to its layer's output.

    No labels and no gradients. The paper ranks the weights of each output against one another; here the scope says
    what is ranked together.

    Example:
        >>> import numpy as np
        >>> w, x = np.array([[1.0, -2.0], [3.0, 0.5]]), np.array([[10.0], [1.0]])
        >>> wanda(Evidence("kernel", w, None, None, np.random.default_rng(0), inputs=x)).tolist()
        [[10.0, 20.0], [3.0, 0.5]]

    References:
        Sun et al., A simple and effective pruning approach for large language models (2023),
        https://arxiv.org/abs/2306.11695
    """
    if evidence.inputs is None or evidence.role not in KERNEL_ROLES:
        return None
    scores = np.abs(evidence.weight)
    scores *= evidence.inputs
    return scores


@CRITERIA("bn_scale", needs=(), comparable=True, reduction="mean")
def bn_scale(evidence: Evidence) -> np.ndarray | None:
    """Score by |γ|, the learned scale of a channel: that of a norm, or of another layer that only scales.

    Example:
        >>> import numpy as np
        >>> bn_scale(Evidence("gamma", np.array([1.0, -2.0]), None, None, np.random.default_rng(0))).tolist()
        [1.0, 2.0]

    References:
        Liu et al., Learning efficient convolutional networks through network slimming (2017),
        https://arxiv.org/abs/1708.06519
    """
    return np.abs(evidence.weight) if evidence.role == "gamma" else None


def criterion_of(criterion: str | Criterion) -> tuple[Criterion, dict[str, Any]]:
    """Give a criterion by name or as it is, with its facts; a plain function may ask for more by `.needs`.

    Args:
        criterion: A registered name, or a function of `Evidence`. A function that wants more than the weight carries
            an attribute `needs`: the name of a field of `Evidence`, or several.

    Returns:
        The function, and its facts: `needs`, a tuple of names of fields, and `comparable`.

    Raises:
        KpipeError: When the name is not known or means a criterion of whole channels, or it is neither a name nor a
            function.
    """
    if isinstance(criterion, str):
        if criterion in CHANNEL_CRITERIA and criterion not in CRITERIA:
            raise KpipeError(
                f"The criterion {criterion!r} judges whole channels, not the entries of a weight. Use it in "
                f"kpipe.plan_filters or FilterPruning; for weights there are: {', '.join(CRITERIA)}."
            )
        function, facts = CRITERIA[criterion], CRITERIA.facts(criterion)
    elif callable(criterion):
        function, facts = criterion, {"needs": getattr(criterion, "needs", None)}
    else:
        raise KpipeError(f"Expected a criterion's name or a function of Evidence. Received: {criterion!r}.")
    facts = _UNSAID | facts
    return function, facts | {"needs": fields_of(facts["needs"])}


def score(criterion: Criterion, evidence: Evidence, path: str) -> np.ndarray | None:
    """Ask a criterion for one weight's scores and check what it gives.

    Args:
        criterion: The function.
        evidence: Of the weight.
        path: Of the weight, for the error.

    Returns:
        Scores shaped like the weight, in float32 or wider, or None where the criterion does not judge.

    Raises:
        KpipeError: When the scores have another shape or are not finite.
    """
    scores = criterion(evidence)
    if scores is None:
        return None
    scores = np.asarray(scores)
    if scores.dtype.kind != "f" or scores.itemsize < 4:
        scores = scores.astype("float32")
    finite = bool(np.isfinite(scores).all())
    if not finite and (culprit := blame(evidence, path)):
        raise KpipeError(culprit)
    if scores.shape != evidence.weight.shape or not finite:
        raise KpipeError(
            f"The criterion gave scores of shape {scores.shape} for {path!r}, all finite: {finite}. "
            f"Expected finite scores of shape {evidence.weight.shape}, or None."
        )
    return scores


def blame(evidence: Evidence, path: str, weight: np.ndarray | None = None) -> str:
    """Say what of the evidence is not finite, so that scores are not: the weight first; nothing where all is.

    Args:
        evidence: On the weight.
        path: Of the weight.
        weight: All of it, where the evidence holds a part.
    """
    if broken := broken_weights([(path, evidence.weight if weight is None else weight)]):
        return broken
    arrays = {field.name: getattr(evidence, field.name) for field in fields(evidence)}
    wrong = [name for name, value in arrays.items() if isinstance(value, np.ndarray) and not_finite(value)]
    if not wrong:
        return ""
    return (
        f"What a pass over the data showed of {path!r} ({', '.join(wrong)}) is not finite, though the weight is: what "
        "the model computes or the loss overflows on these data. Look at what the model answers on them."
    )
