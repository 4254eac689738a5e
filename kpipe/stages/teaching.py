"""Who teaches a stage's training, and which of their layers are compared."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

import keras

from kpipe.distill import Feature
from kpipe.errors import KpipeError
from kpipe.pipeline import Context
from kpipe.registry import nearest
from kpipe.stages.fields import Teaching
from kpipe.structured import FilterPlan
from kpipe.structured.composition import kept_channels

Kept = Mapping[str, tuple[int, tuple[int, ...]]]
"""Name of a layer -> the axis of its channels and the places of those that the student has."""


@dataclass(frozen=True)
class Teacher:
    """Hold who teaches, and how.

    Args:
        teaching: What the stage says of it.
        model: The teacher.
        kept: Which of the teacher's channels the student has, of layers that have lost some, as far as that is known.
    """

    teaching: Teaching
    model: keras.Model
    kept: Kept = field(default_factory=dict)

    def features(self, student: keras.Model) -> list[Feature]:
        """Give the layers to compare: those of the teacher whose name an expression is found in and the student has.

        Raises:
            KpipeError: When an expression is found in none of them.
        """
        both = [layer.name for layer in self.model.layers if layer.name in {one.name for one in student.layers}]
        named: dict[str, Feature] = {}
        for wanted in self.teaching.features:
            found = [name for name in both if re.search(wanted, name)]
            if not found:
                raise KpipeError(
                    f"distill.features has {wanted!r}, which is found in the name of no layer that both the teacher "
                    f"and the model have: {', '.join(both)}.{nearest(wanted, both)}"
                )
            for name in found:
                axis, kept = self.kept.get(name, (-1, None))
                named[name] = Feature(name, kept=kept, axis=axis)
        return list(named.values())


def teacher_of(
    teaching: Teaching | None, context: Context, given: keras.Model, plan: FilterPlan | None = None
) -> Teacher | None:
    """Find the teacher of a stage's training.

    Args:
        teaching: What the stage says; None: nobody teaches.
        context: The run's context.
        given: The model as the stage got it.
        plan: What the stage has cut of it, for a model whose channels are matched with the teacher's.

    Returns:
        The teacher, or None.

    Raises:
        KpipeError: When the baseline is to teach and there is none.
    """
    if teaching is None:
        return None
    if teaching.teacher == "input":
        teacher = given
    elif context.baseline is None:
        raise KpipeError("distill has no teacher: let a train stage come first, or load a trained model.")
    else:
        teacher = context.baseline.load()
    kept = kept_channels(given, plan) if plan is not None and teaching.features else {}
    ours, theirs = _shapes(given), _shapes(teacher)
    return Teacher(teaching, teacher, {name: one for name, one in kept.items() if ours.get(name) == theirs.get(name)})


def _shapes(model: keras.Model) -> dict[str, tuple[int | None, ...]]:
    """Map each layer that is called once to the shape of its output: where they are the same, so are the channels."""
    called_once = (layer for layer in model.layers if len(layer._inbound_nodes) == 1)
    return {layer.name: tuple(layer.output.shape) for layer in called_once if not isinstance(layer.output, list)}
