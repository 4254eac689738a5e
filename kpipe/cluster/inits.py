"""Where the centroids of a clustering begin. A new way is one decorated function."""

from collections.abc import Callable

import numpy as np

from kpipe.registry import Registry

Init = Callable[[np.ndarray, int, np.random.Generator], np.ndarray]
"""(values in ascending order, number of centroids, random numbers) -> so many centroids, in any order."""

INITS: Registry[Init] = Registry("initialisation of centroids")
"""Name -> where the centroids begin."""


@INITS("linear")
def linear(values: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
    """Even steps from the least value to the greatest: large weights, which are few, have centroids too.

    Example:
        >>> linear(np.array([0.0, 0.1, 0.2, 1.0]), 3, np.random.default_rng(0)).tolist()
        [0.0, 0.5, 1.0]

    References:
        Han et al., Deep Compression (2015), section 3.2.
    """
    return np.linspace(values[0], values[-1], count)


@INITS("density")
def density(values: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
    """Even steps of the distribution: the middle value of each of so many shares of equally many values.

    Example:
        >>> density(np.arange(8.0), 2, np.random.default_rng(0)).tolist()
        [2.0, 6.0]

    References:
        Han et al., Deep Compression (2015), section 3.2.
    """
    return values[((np.arange(count) + 0.5) * len(values) / count).astype(np.int64)]


@INITS("random")
def random(values: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
    """Uniform random numbers between the least value and the greatest.

    Example:
        >>> drawn = random(np.array([-1.0, 0.0, 3.0]), 100, np.random.default_rng(0))
        >>> len(drawn), bool(drawn.min() >= -1), bool(drawn.max() <= 3), bool(drawn.max() > 2.5)
        (100, True, True, True)
    """
    return rng.uniform(values[0], values[-1], count)


@INITS("kmeans++")
def plus_plus(values: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
    """Values drawn one after another, each with a chance in proportion to D², D its distance to those drawn before.

    Example:
        >>> sorted(plus_plus(np.array([0.0, 0.0, 0.0, 5.0]), 2, np.random.default_rng(0)).tolist())
        [0.0, 5.0]

    References:
        Arthur and Vassilvitskii, k-means++: the advantages of careful seeding (2007).
    """
    chosen = [values[rng.integers(len(values))]]
    distances = np.square(values - chosen[0])
    for _ in range(count - 1):
        cumulated = np.cumsum(distances)
        place = np.searchsorted(cumulated, rng.random() * cumulated[-1], side="right")
        chosen.append(values[min(place, len(values) - 1)])
        np.minimum(distances, np.square(values - chosen[-1]), out=distances)
    return np.array(chosen)
