"""What a callback asks of its schedule, and what there is to say of a training that did less than was asked for."""

from dataclasses import dataclass

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


@dataclass(frozen=True)
class Training:
    """Say how far a training went with one set of weights.

    Args:
        begun: Optimizer updates done when it began.
        ended: Optimizer updates done when it ended.
        before: Number of entries that were gone when it began.
        after: Number of entries that were gone when it ended.
        lacks: Whether fewer are gone at the end than the schedule asks for in the end.
    """

    begun: int
    ended: int
    before: int
    after: int
    lacks: bool


@dataclass(frozen=True)
class Shortfall:
    """Say what a training fell short of; `nothing` when it pruned nothing, and the text says why."""

    text: str
    nothing: bool


def shortfall(ask: Schedule, training: Training) -> Shortfall | None:
    """Say what a training did less than its schedule asks for, by which step numbers did not meet.

    Args:
        ask: The schedule.
        training: How far it went.

    Returns:
        None when as much is gone as the schedule asks for in the end.

    Example:
        >>> from kpipe.schedules import ConstantSparsity
        >>> short = shortfall(ConstantSparsity(0.5, begin_step=100), Training(0, 40, before=0, after=0, lacks=True))
        >>> print(short.text)
        training ended at step 40, before begin_step=100. Train longer, or begin earlier.
    """
    begun, ended, last = training.begun, training.ended, ask.settled_step
    over = max(ask.end_step, last)
    if not training.lacks:
        if training.after:
            return None
        return Shortfall(f"between steps {begun} and {ended} {ask} asked for less than one entry of each.", True)
    if training.after > training.before:
        text = f"ended at step {ended} with fewer entries gone than {ask} asks for."
        if ended < last:
            text = (
                f"ended at step {ended}, before its schedule reaches {ask.sparsity(last):.4g} at step {last}. Train "
                f"longer, or let it end by step {ended}."
            )
        return Shortfall(text, False)
    if ended == begun:
        text = (
            f"the model's optimizer made no update (it stands at {ended}). In a loop of your own, model.optimizer has "
            "to be the optimizer that you apply."
        )
    elif ended < ask.begin_step:
        text = f"training ended at step {ended}, before begin_step={ask.begin_step}. Train longer, or begin earlier."
    elif over < begun:
        text = (
            f"the schedule ended at step {over} and this training began at step {begun}; the optimizer counts its "
            "steps over all fits. Compile the model anew, or give a schedule that ends later."
        )
    else:
        text = (
            f"training ended at step {ended}, long before step {last}, at which the schedule ends, and no update fell "
            "in it. Train longer, let it end earlier, or update more often (frequency)."
        )
    return Shortfall(text, True)
