"""How a file is refused."""

import re

LENGTH = 400
"""How many characters of an error are shown; the reason stands at its end."""
_UNKNOWN = re.compile(r"(?:Unknown [a-z ]+: |Could not locate (?:class|function) )'?(\w+)")


class Refusal(Exception):
    """Say why a file cannot be read, in words that reach the user as they are."""


def shortened(error: BaseException) -> str:
    """Write an error on one line, without what TensorFlow adds about its operations.

    Example:
        >>> shortened(ValueError("Bad shape.\\n\\nCall arguments received by layer: ..."))
        'ValueError: Bad shape'
        >>> shortened(ValueError("Unknown layer: 'Blur'. Please ensure you are using a `custom_object_scope`"))
        "'Blur' is not known to Keras; pass it: custom_objects={'Blur': ...}"
    """
    text = " ".join(str(error).split("Call arguments received by layer")[0].split())
    unknown = _UNKNOWN.search(text)
    if unknown:
        return f"{unknown[1]!r} is not known to Keras; pass it: custom_objects={{{unknown[1]!r}: ...}}"
    if len(text) > LENGTH:
        text = f"{text[: LENGTH // 4]} ... {text[-3 * LENGTH // 4 :]}"
    return f"{type(error).__name__}: {text.rstrip('.')}"
