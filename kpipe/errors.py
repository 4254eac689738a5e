"""The errors and warnings that kpipe raises, all of the `ValueError` family."""


class KpipeError(ValueError):
    """Report bad input: what was received, what was expected, how to fix it, and the layer's name."""


class SurgeryError(KpipeError):
    """Report a layer or an operation whose channels cannot be followed or removed safely."""


class RecipeError(KpipeError):
    """Report all the faults of a recipe at once, each with its path in the file."""


class ExportError(KpipeError):
    """Report a file that could not be written, or whose answers differ from the Keras model's."""


class NoEffectWarning(UserWarning):
    """Warn that a step ran and changed nothing."""
