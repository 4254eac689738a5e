"""How a file is refused."""

import re

LENGTH = 400
"""How many characters of an error are shown; the reason stands at its end."""
_CODE = re.compile(r"{'value': \[.*Expecting python dict contains")
_UNKNOWN = re.compile(r"(?:Unknown [a-z ]+:? '|Unknown [a-z ]+: |Could not locate (?:class|function) ')([\w<>]+)")


class Refusal(BaseException):
    """Say why a file cannot be read, in words that reach the user as they are.

    It is no `Exception`: tf_keras passes over those of the layers in a SavedModel.
    """


def shortened(error: BaseException) -> str:
    """Write an error on one line, without what TensorFlow adds about its operations.

    Example:
        >>> shortened(ValueError("Bad shape.\\n\\nCall arguments received by layer: ..."))
        'ValueError: Bad shape'
        >>> shortened(ValueError("Unknown layer: 'Blur'. Please ensure you are using a `custom_object_scope`"))
        "'Blur' is not known to Keras; pass it: custom_objects={'Blur': ...}"
        >>> shortened(TypeError("Dense {'value': ['4wEA', None, None]}. Expecting python dict contains `class_name`"))
        'a function, such as an activation, is stored as the code of a lambda, which tf_keras cannot load; ...'
    """
    text = " ".join(str(error).split("Call arguments received by layer")[0].split())
    if _CODE.search(text):
        return (
            "a function, such as an activation, is stored as the code of a lambda, which tf_keras cannot load; build "
            "the model anew under tf_keras with a function of a module, load the weights, and save that"
        )
    unknown = _UNKNOWN.search(text)
    if unknown:
        return f"{unknown[1]!r} is not known to Keras; pass it: custom_objects={{{unknown[1]!r}: ...}}"
    if len(text) > LENGTH:
        text = f"{text[: LENGTH // 4]} ... {text[-3 * LENGTH // 4 :]}"
    return f"{type(error).__name__}: {text.rstrip('.')}"
