"""Compressed sizes, against compressors that were not asked."""

import subprocess
import zlib

import numpy as np
import pytest

from kpipe.export.sizes import GZIP_LEVEL, ZSTD_LEVEL, gzip_size, zstd, zstd_size

RNG = np.random.default_rng(0)
NOISE = RNG.integers(0, 256, 20_000, dtype=np.uint8).tobytes()


def test_gzip_is_deflate_with_a_head_and_a_tail_of_18_bytes():
    content = bytes(5000) + NOISE[:5000]
    squeezer = zlib.compressobj(GZIP_LEVEL, zlib.DEFLATED, -15)
    assert gzip_size(content) == len(squeezer.compress(content) + squeezer.flush()) + 18


def test_zstd_is_that_of_the_command(tmp_path):
    """The `zstd` command writes the content's checksum, 4 bytes, unless told otherwise."""
    path = tmp_path / "content"
    path.write_bytes(bytes(5000) + NOISE[:5000])
    command = ["zstd", f"-{ZSTD_LEVEL}", "--no-check", "--stdout", "--quiet", str(path)]
    try:
        there = subprocess.run(command, capture_output=True, check=True).stdout
    except FileNotFoundError:
        pytest.skip("the command zstd is not here")
    assert abs(zstd_size(path.read_bytes()) - len(there)) <= 8
    assert zstd.decompress(there) == path.read_bytes()


@pytest.mark.parametrize("size", [gzip_size, zstd_size])
def test_noise_cannot_be_squeezed_and_zeros_can(size):
    """Eight random bits need eight; a byte that is zero in four cases of five, H(0.2) = 0.722 and 0.2 · 8."""
    assert len(NOISE) <= size(NOISE) < len(NOISE) + 100
    values = np.frombuffer(NOISE, np.uint8).copy()
    values[RNG.random(values.size) < 0.8] = 0
    entropy = values.size * (0.722 + 0.2 * 8) / 8  # bytes: 0.722 bits for where, 8 for what
    assert entropy < size(values.tobytes()) < 1.3 * entropy
    assert size(b"") < 30
