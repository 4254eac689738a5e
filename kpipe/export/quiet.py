"""Silence for converters that chat on loggers and standard output."""

import contextlib
import io
import logging
from collections.abc import Iterator

LOGGERS = ("tensorflow", "absl", "tf2onnx", "tf2onnx.tfonnx", "tf2onnx.optimizer")


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep loggers below errors, and Python's standard output, silent for a while; the levels come back.

    Example:
        >>> with quiet():
        ...     print("converting ...")
    """
    loggers = [logging.getLogger(name) for name in LOGGERS]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
