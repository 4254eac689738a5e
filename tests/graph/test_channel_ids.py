"""Union-find and shapes of channel ids, against sets kept by hand."""

import numpy as np
import pytest

from kpipe.errors import SurgeryError
from kpipe.layers import ChannelIds


def test_ties_are_an_equivalence():
    rng, ids = np.random.default_rng(0), ChannelIds()
    x = ids.fresh(60)
    sets = [{i} for i in range(60)]
    for _ in range(45):
        a, b = rng.integers(0, 60, 2)
        ids.tie(x[a], x[b])
        merged = next(s for s in sets if a in s) | next(s for s in sets if b in s)
        sets = [s for s in sets if not s & merged] + [merged]
    classes = ids.classes()
    assert {frozenset(np.flatnonzero(classes == c).tolist()) for c in set(classes.tolist())} == set(
        map(frozenset, sets)
    )


def test_settling_leaves_one_axis_that_varies():
    ids = ChannelIds()
    x = ids.fresh(12).reshape(3, 4)
    settled = ids.settle(x)
    assert settled.shape == (1, 4)
    classes = ids.classes().reshape(3, 4)
    assert (classes == classes[0]).all() and len(set(classes[0].tolist())) == 4


def test_an_open_size_cannot_be_written_out():
    ids = ChannelIds()
    ids.at("flatten", [(None, None, 4)], [(None, None)])
    with pytest.raises(SurgeryError, match=r"'flatten'.*open size"):
        ids.whole(ids.fresh(4).reshape(1, 4))
