"""How a file is refused."""

LENGTH = 400
"""How many characters of an error are shown; the reason stands at its end."""


class Refusal(Exception):
    """Say why a file cannot be read, in words that reach the user as they are."""


def shortened(error: BaseException) -> str:
    """Write an error on one line, without what TensorFlow adds about its operations.

    Example:
        >>> shortened(ValueError("Unknown layer: 'Blur'.\\n\\nCall arguments received by layer: ..."))
        "ValueError: Unknown layer: 'Blur'"
    """
    text = str(error).split("Call arguments received by layer")[0]
    text = " ".join(text.split())
    if len(text) > LENGTH:
        text = f"{text[: LENGTH // 4]} ... {text[-3 * LENGTH // 4 :]}"
    return f"{type(error).__name__}: {text.rstrip('.')}"
