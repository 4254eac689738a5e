"""TFMOT as the oracle: the same weights and the same schedule give the same masks at every step."""

import numpy as np
import pytest

from kpipe import schedules
from kpipe.patterns import keep_masks
from tests.unstructured.tfmot_cases import APART, SAME, SCHEDULES, STEPS, Case


@pytest.fixture(scope="module")
def tfmot(oracle):
    """Give TFMOT's masks of each case, of shape (STEPS, *shape)."""
    return {name: oracle[f"mask: {name}"] for name in SAME | APART}


def schedule_of(case: Case):
    name, arguments = SCHEDULES[case.schedule]
    return getattr(schedules, name)(**arguments)


def our_masks(case: Case, score=np.abs, late=0):
    """Follow the schedule for the same steps; what is dropped stays dropped."""
    ask, keep = schedule_of(case), np.ones(case.shape, bool)
    found = []
    for step in range(1, STEPS + 1):
        due, sparsity = ask(step - late)
        if due:
            scores = np.where(keep, score(case.weight()), -np.inf)
            keep = keep_masks({"w": scores}, sparsity, "layer", case.pattern)["w"]
        found.append(keep)
    return np.stack(found)


@pytest.mark.parametrize("name", SAME)
def test_masks_are_those_of_tfmot_at_every_step(name, tfmot):
    ours, theirs = our_masks(SAME[name]), tfmot[name]
    np.testing.assert_array_equal(ours, theirs)
    updates = [step for step in range(1, STEPS + 1) if schedule_of(SAME[name])(step)[0]]
    changes = 1 + np.flatnonzero((theirs != np.roll(theirs, 1, 0)).reshape(STEPS, -1).any(axis=1)[1:]) + 1
    assert set(changes) <= set(updates) and not theirs[-1].all()
    assert len(changes) >= 4 or "polynomial" not in name, "the comparison follows a rising sparsity"


@pytest.mark.parametrize("name", SAME)
def test_the_comparison_sees_another_criterion_and_another_step(name, tfmot):
    assert not np.array_equal(our_masks(SAME[name], score=lambda weight: -np.abs(weight)), tfmot[name])
    assert not np.array_equal(our_masks(SAME[name], late=1), tfmot[name])


def test_sizes_leave_no_half_entry_to_round():
    for case in SAME.values():
        if case.pattern[1] == ":":
            continue
        units = np.prod([-(-size // step) for size, step in zip(case.shape[-2:], case.block, strict=True)])
        units *= np.prod(case.shape[:-2])
        shares = [sparsity for step in range(STEPS) for due, sparsity in [schedule_of(case)(step)] if due]
        assert all(abs((share * units) % 1 - 0.5) > 1e-3 for share in shares), case


def zeros(masks):
    return int((~masks[-1]).sum())


def test_equal_weights_are_dropped_by_index_where_tfmot_keeps_them_all(tfmot):
    case = APART["equal weights"]
    assert zeros(tfmot["equal weights"]) == 0
    assert zeros(our_masks(case)) == round(0.6 * 144)


def test_half_an_entry_is_rounded_in_what_goes_where_tfmot_rounds_what_stays(tfmot):
    name = "an odd number of entries, half of them"
    assert zeros(our_masks(APART[name])) == round(0.5 * 15) == 8
    assert zeros(tfmot[name]) == 15 - round(0.5 * 15) == 7


def test_blocks_begin_at_the_first_input_where_tfmot_pools_over_padding_before_it(tfmot):
    """TFMOT pools 14 rows with one row of padding before and one after, but drops rows 0 to 3 for the first block."""
    name = "blocks that do not fill the weight"
    case = APART[name]
    theirs, ours = tfmot[name][-1], our_masks(case)[-1]
    magnitude = np.abs(case.weight())
    padded = np.pad(magnitude, ((1, 1), (0, 0)), constant_values=np.nan)
    pooled = np.nanmean(padded.reshape(4, 4, 7), axis=1)  # (block, output)
    dropped = np.zeros(28, bool)
    dropped[np.argsort(pooled, axis=None)[: round(0.6 * 28)]] = True
    np.testing.assert_array_equal(theirs, ~np.repeat(dropped.reshape(4, 7), 4, axis=0)[:14])
    assert not np.array_equal(ours, theirs)
    for first, last in ((0, 4), (4, 8), (8, 12), (12, 14)):
        assert (ours[first:last] == ours[first]).all()
    kept = [magnitude[4 * r : 4 * r + 4, c].mean() for r in range(4) for c in range(7) if ours[4 * r, c]]
    gone = [magnitude[4 * r : 4 * r + 4, c].mean() for r in range(4) for c in range(7) if not ours[4 * r, c]]
    assert max(gone) < min(kept)
