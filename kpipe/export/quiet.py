"""Silence for converters that chat on loggers and standard output."""

import contextlib
import io
import logging
import os
import warnings
from collections.abc import Iterator

from kpipe.fake_quant import LOST_MASK

LOGGERS = ("tensorflow", "absl", "tf2onnx", "tf2onnx.tfonnx", "tf2onnx.optimizer")


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep loggers below errors, Python's standard output, and what Keras has said before silent for a while.

    Example:
        >>> with quiet():
        ...     print("converting ...")
    """
    loggers = [logging.getLogger(name) for name in LOGGERS]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)
    try:
        with contextlib.redirect_stdout(io.StringIO()), quiet_native(), warnings.catch_warnings():
            warnings.filterwarnings("ignore", LOST_MASK, UserWarning)
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


@contextlib.contextmanager
def quiet_native() -> Iterator[None]:
    """Keep C++ code silent that writes straight to file descriptor 2, where no log level of Python's reaches it.

    Example:
        >>> with quiet_native():
        ...     _ = os.write(2, b"INFO: created a delegate")
    """
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(nowhere)
        os.close(kept)
