"""What a file weighs when it is compressed, which is how it travels."""

import gzip
import sys

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

GZIP_LEVEL, ZSTD_LEVEL = 9, 19
"""The strongest level of gzip, and zstd's strongest that asks for no more memory when it is unpacked."""

MOST_FOR_ZSTD = 4_000_000
"""Bytes up to which a size is measured with Zstandard while somebody waits for it."""


def gzip_size(content: bytes) -> int:
    """Count the bytes of `content` after gzip at level 9.

    Example:
        >>> gzip_size(bytes(100_000)) < 200
        True
    """
    return len(gzip.compress(content, compresslevel=GZIP_LEVEL, mtime=0))


def zstd_size(content: bytes) -> int:
    """Count the bytes of `content` after Zstandard at level 19.

    Example:
        >>> zstd_size(bytes(100_000)) < 100
        True
    """
    return len(zstd.compress(content, level=ZSTD_LEVEL))


def sizes_at_once(content: bytes) -> tuple[int, int, int | None]:
    """Give the bytes of `content`, after gzip and after Zstandard, to show while somebody waits.

    Returns:
        Bytes; None for Zstandard above 4 MB, where that takes seconds.

    Example:
        >>> sizes_at_once(b"") == (0, gzip_size(b""), zstd_size(b""))
        True
    """
    return len(content), gzip_size(content), zstd_size(content) if len(content) <= MOST_FOR_ZSTD else None
