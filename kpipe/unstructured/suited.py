"""Leave out the weights that cannot have a pattern."""

from collections.abc import Sequence

from kpipe.errors import KpipeError
from kpipe.patterns import Pattern
from kpipe.targets import Skipped, Target


def suited(targets: Sequence[Target], pattern: Pattern) -> tuple[list[Target], list[Skipped]]:
    """Part the weights into those that can have a pattern and those that cannot, each of these with the reason.

    Args:
        targets: Weights to prune.
        pattern: What goes together.

    Returns:
        The targets that stay, and those that are skipped.

    Raises:
        KpipeError: When none stays.

    Example:
        >>> import keras
        >>> from kpipe.patterns import pattern_of
        >>> narrow, wide = (Target(f"{size}", "kernel", keras.Variable([[1.0]] * size)) for size in (2, 8))
        >>> stay, skipped = suited([narrow, wide], pattern_of("2:4"))
        >>> [target.path for target in stay], skipped[0].reason
        (['8'], "the pattern '2:4' keeps 2 of each group, and it sums over 2 inputs: prune it by another pattern")
    """
    stay, skipped = [], []
    for target in targets:
        shape = tuple(target.variable.shape)
        reason = pattern.refuses(target.layout.turned_shape(shape))
        if reason is None:
            stay.append(target)
        else:
            skipped.append(Skipped(target.path, shape, reason))
    if targets and not stay:
        reasons = "; ".join(f"{row.path}: {row.reason}" for row in skipped[:8])
        raise KpipeError(f"No weight can have the pattern '{pattern}' ({reasons}). Choose another pattern or layers.")
    return stay, skipped
