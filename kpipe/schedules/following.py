"""What a callback asks of its schedule, and what it says when a training did less than the schedule asks for."""

import warnings

from kpipe.errors import NoEffectWarning
from kpipe.schedules.schedule import Schedule


def last_due(ask: Schedule, first: int, last: int) -> float | None:
    """Ask the schedule for every step from `first` to `last`; give the sparsity of the last due update, if any is.

    Several optimizer updates may pass between two questions (`steps_per_execution`); a due one must not be lost.

    Example:
        >>> from kpipe.schedules import ConstantSparsity
        >>> last_due(ConstantSparsity(0.5, begin_step=0, frequency=10), 8, 12)
        0.5
        >>> last_due(ConstantSparsity(0.5, begin_step=0, frequency=10), 11, 12) is None
        True
    """
    for step in range(last, first - 1, -1):
        due, sparsity = ask(step)
        if due:
            return sparsity
    return None


def warn_of_shortfall(what: str, ask: Schedule, begun: int, ended: int, changed: bool) -> None:
    """Warn when a training did less than its schedule asks for; say which step numbers did not meet.

    Args:
        what: Who pruned, for the text.
        ask: The schedule.
        begun: Optimizer updates done when the training began.
        ended: Optimizer updates done when it ended.
        changed: Whether anything is pruned by now.

    Example:
        >>> from kpipe.schedules import ConstantSparsity
        >>> import warnings
        >>> with warnings.catch_warnings(record=True) as caught:
        ...     warnings.simplefilter("always")
        ...     warn_of_shortfall("WeightPruning", ConstantSparsity(0.5, begin_step=100), 0, 40, changed=False)
        >>> print(caught[0].message)
        WeightPruning pruned nothing: training ended at step 40, before begin_step=100. Train longer, or begin earlier.
    """
    if not changed and ended < ask.begin_step:
        text = f"training ended at step {ended}, before begin_step={ask.begin_step}. Train longer, or begin earlier."
    elif not changed and 0 <= ask.end_step < begun:
        text = (
            f"the schedule ended at step {ask.end_step} and this training began at step {begun}; the optimizer counts "
            "its steps over all fits. Compile the model anew, or give a schedule that ends later."
        )
    elif not changed and ended < ask.end_step:
        text = f"training ended at step {ended}, long before end_step={ask.end_step}. Train longer, or lower end_step."
    elif not changed:
        text = f"between steps {begun} and {ended} {ask} asked for less than one entry of each."
    elif ended < ask.end_step:
        warnings.warn(
            f"{what} ended at step {ended}, before end_step={ask.end_step} of its schedule: the last sparsity asked "
            f"for was below {ask.sparsity(ask.end_step)}. Train longer, or set end_step to at most {ended}.",
            UserWarning,
            stacklevel=3,
        )
        return
    else:
        return
    warnings.warn(f"{what} pruned nothing: {text}", NoEffectWarning, stacklevel=3)
