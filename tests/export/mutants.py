"""Files that were damaged by chance, the same in every process."""

from collections.abc import Iterator

import numpy as np


def mutants(content: bytes, count: int, seed: int) -> Iterator[tuple[str, bytes]]:
    """Give damaged copies of a file's content, in turn cut short, with bits flipped, overwritten, and torn apart.

    Args:
        content: The good file.
        count: How many.
        seed: Of what is damaged.
    """
    rng = np.random.default_rng(seed)
    kinds = (cut, flip_one, flip_many, overwrite, head_of_noise, swap)
    for n in range(count):
        kind = kinds[n % len(kinds)]
        yield f"{n}-{kind.__name__}", kind(content, rng)


def cut(content: bytes, rng: np.random.Generator) -> bytes:
    return content[: int(rng.integers(0, len(content)))]


def flip_one(content: bytes, rng: np.random.Generator) -> bytes:
    return _flipped(content, rng.integers(0, len(content), 1), rng)


def flip_many(content: bytes, rng: np.random.Generator) -> bytes:
    return _flipped(content, rng.integers(0, len(content), int(rng.integers(2, 200))), rng)


def _flipped(content: bytes, places: np.ndarray, rng: np.random.Generator) -> bytes:
    damaged = bytearray(content)
    for place in places:
        damaged[place] ^= 1 << int(rng.integers(0, 8))
    return bytes(damaged)


def overwrite(content: bytes, rng: np.random.Generator) -> bytes:
    """Put the greatest or a random whole number of 4 bytes over what stands at a place."""
    place = int(rng.integers(0, max(1, len(content) - 4)))
    number = rng.choice([0xFFFFFFFF, 0x7FFFFFFF, 0, int(rng.integers(0, 2**32))])
    return content[:place] + int(number).to_bytes(4, "little") + content[place + 4 :]


def head_of_noise(content: bytes, rng: np.random.Generator) -> bytes:
    """Keep the first bytes, by which a format is known, and go on with noise."""
    return content[:8] + rng.bytes(len(content) - 8)


def swap(content: bytes, rng: np.random.Generator) -> bytes:
    middle = int(rng.integers(8, len(content)))
    return content[:8] + content[middle:] + content[8:middle]
