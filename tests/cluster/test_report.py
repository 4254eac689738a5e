import itertools
import math

import keras
import numpy as np
import pytest

from kpipe.cluster import as_it_is, entropy, huffman_bits, make_report
from kpipe.targets import Skipped, Target


def shortest(counts):
    """Try every set of word lengths that a prefix code can have (Kraft's inequality)."""
    lengths = itertools.product(range(1, len(counts)), repeat=len(counts))
    fitting = (one for one in lengths if sum(2.0**-length for length in one) <= 1)
    return min(sum(count * length for count, length in zip(counts, one, strict=True)) for one in fitting)


@pytest.mark.parametrize(
    "counts", [[1, 1], [5, 1, 1], [8, 4, 2, 1], [3, 3, 3, 3, 3], [100, 1, 1, 1, 7], [2, 9, 4, 4, 1, 30]]
)
def test_huffmans_code_is_the_shortest(counts):
    found = huffman_bits(counts)
    assert found == shortest(counts)
    assert entropy(counts) * sum(counts) <= found <= (entropy(counts) + 1) * sum(counts)


def test_one_symbol_takes_nothing():
    assert huffman_bits([7, 0]) == 0 and entropy(np.array([7, 0])) == 0


def target(values, path="d/kernel"):
    return Target(path, "kernel", keras.Variable(values))


def test_the_figures_of_a_weight():
    values = np.array([0.0] * 8 + [1.0] * 4 + [2.0] * 2 + [3.0] * 2, "float32").reshape(4, 4)
    report = make_report([(target(values), as_it_is(values))], [Skipped("d/bias", (4,), "its role is 'bias'")])
    (row,) = report.clustered
    assert (row.clusters, row.zeros, row.bits, row.entropy) == (4, 8, 2, 1.75)
    assert row.packed_bytes == 4 and row.huffman_bytes == math.ceil((8 + 4 * 2 + 4 * 3) / 8)
    assert row.codebook_bytes == 16 and row.dense_bytes == 64 and report.ratio == 64 / 20
    assert [skipped.path for skipped in report.skipped] == ["d/bias"] and "1.75" in str(report)
    assert report.to_list()[0]["shape"] == [4, 4]


def test_a_codebook_for_each_channel_counts_whole():
    values = np.random.default_rng(0).choice([-1.0, 0.0, 0.5, 4.0], size=(20, 3)) * [1, 2, 3]
    (row,) = make_report([(target(values), as_it_is(values, "channel"))]).clustered
    assert row.clusters == 4 and row.codebook_bytes == 3 * 4 * 8 and row.zeros == np.count_nonzero(values == 0)
