"""Ways to drop a few more of 400,000 weights, side by side: CPU time of one update and of what holds it in every step.

A schedule that is asked at every step drops few entries at a time, and what is dropped stays dropped. The ways:

- sort: all magnitudes, in NumPy;
- partition: all magnitudes, in NumPy;
- bracket: a sample says between which two values the threshold lies, counting proves it (`keep_highest`), over all
  entries, those dropped before marked as lowest;
- survivors: the same over what is kept;
- few: a bound from a sample, then only what lies below it among what is kept (`drop_lowest`);
- carried: as few, with the bound carried over from the last update instead of a sample;
- top_k in the graph: TFMOT's way, a sorting top-k inside TensorFlow, no copy to the host;
- counts in the graph: bisection by counting inside TensorFlow, no copy to the host.

Every way gives the same mask, which is checked. Those in NumPy copy the weight to the host first, and the mask back;
their times have both in them.

kpipe uses `few`. A pass over a weight in NumPy costs less than one inside TensorFlow, copies and all; sorting and
partitioning do much more than is asked for, and a partition of many equal values (all that is dropped is zero) is the
slowest of all. To carry the bound over saves a little more and would be state that has to be kept right: after a
restore, a frozen layer, a jump of the schedule. What holds the zeros is the kernel `Select`: NaN does not survive it as
it does a multiplication, no entry becomes -0.0, and on large weights it beats `where`, which can broadcast.

    python benchmarks/mask_update.py
    python benchmarks/mask_update.py --quick
"""

import argparse
import json
import os
import statistics
import time
from pathlib import Path

import numpy as np
import tensorflow as tf

from kpipe.patterns import keep_highest
from kpipe.unstructured.masks import drop_lowest

RESULTS = Path(__file__).parent / "results" / "mask_update.json"
SHAPE = (800, 500)
BOUND: dict[str, np.floating] = {}


def by_order(scores, keep, drop):
    """Sort everything."""
    new = np.ones(scores.size, bool)
    new[np.argsort(scores.ravel(), kind="stable")[:drop]] = False
    return new.reshape(keep.shape)


def by_partition(scores, keep, drop):
    """Partition everything."""
    new = np.ones(scores.size, bool)
    new[np.argpartition(scores.ravel(), drop - 1)[:drop]] = False
    return new.reshape(keep.shape)


def by_bracket(scores, keep, drop):
    """Bracket the threshold over everything."""
    return keep_highest([np.where(keep, scores, -np.inf)], drop)[0]


def by_survivors(scores, keep, drop):
    """Bracket the threshold over what is kept."""
    places, new = np.flatnonzero(keep), keep.copy()
    (stay,) = keep_highest([scores.ravel()[places]], drop - (keep.size - len(places)))
    new.reshape(-1)[places[~stay]] = False
    return new


def by_few(scores, keep, drop):
    """Look at what lies below a sampled bound."""
    return drop_lowest([keep], [scores], drop)[0]


def by_carried(scores, keep, drop):
    """Look at what lies below the bound of the last update."""
    more = drop - (keep.size - int(np.count_nonzero(keep)))
    places = np.flatnonzero((scores <= BOUND.get("last", np.inf)) & keep)
    if len(places) < more:
        places = np.flatnonzero(keep)
    values, new = scores.ravel()[places], keep.copy()
    last = min(4 * more, len(values) - 1)
    BOUND["last"] = np.partition(values, last)[last]
    (stay,) = keep_highest([values], more)
    new.reshape(-1)[places[~stay]] = False
    return new


@tf.function(autograph=False)
def by_top_k(weight, mask, drop):
    """Sort inside the graph and change the mask there."""
    scores = tf.reshape(tf.abs(weight), [-1])
    _, places = tf.math.top_k(scores, k=tf.size(scores) - drop)
    kept = tf.scatter_nd(places[:, None], tf.ones_like(places, tf.int8), [tf.size(scores)])
    mask.assign(tf.cast(tf.reshape(kept, weight.shape), tf.bool))


@tf.function(autograph=False)
def by_counts(weight, mask, drop):
    """Bisect the bits of the threshold by counting inside the graph; positive floats are ordered as their bits are."""
    bits = tf.bitcast(tf.abs(weight), tf.int32)

    def halve(low, high):
        middle = low + (high - low) // 2
        enough = tf.math.count_nonzero(bits <= middle, dtype=tf.int32) >= drop
        return tf.where(enough, low, middle + 1), tf.where(enough, middle, high)

    first = (tf.constant(0), tf.constant(0x7F7FFFFF))
    threshold, _ = tf.while_loop(lambda low, high: low < high, halve, first)
    mask.assign(bits > threshold)


NUMPY = {
    "sort": by_order,
    "partition": by_partition,
    "bracket": by_bracket,
    "survivors": by_survivors,
    "few": by_few,
    "carried": by_carried,
}
GRAPH = {"top_k in the graph": by_top_k, "counts in the graph": by_counts}


def on_host(way, weight, mask, drop):
    """Copy the weight and the mask to the host, choose there, and copy the mask back."""
    mask.assign(way(np.abs(weight.numpy()), mask.numpy(), drop))


def measure(function, repeat):
    """Give the lowest mean CPU time of some rounds, in milliseconds; what takes long is repeated less often."""
    function()
    begin = time.process_time()
    function()
    repeat, rounds = max(2, min(repeat, int(0.1 / max(1e-6, time.process_time() - begin)))), []
    for _ in range(5):
        begin = time.process_time()
        for _ in range(repeat):
            function()
        rounds.append(1000 * (time.process_time() - begin) / repeat)
    return min(rounds)


def updates(repeat):
    """Measure every way at several sparsities and numbers of entries to drop."""
    values = np.random.default_rng(0).normal(size=SHAPE).astype("float32")
    order, found = np.argsort(np.abs(values), axis=None), []
    for sparsity, more in ((0.0, 100), (0.5, 100), (0.9, 100), (0.5, 4000)):
        gone = round(sparsity * values.size)
        keep = np.ones(values.size, bool)
        keep[order[:gone]] = False
        keep = keep.reshape(SHAPE)
        weight, mask = tf.Variable(tf.constant(values * keep)), tf.Variable(tf.constant(keep))
        expected, drop = by_order(np.abs(values * keep), keep, gone + more), gone + more
        row = {"sparsity": sparsity, "drop": more}
        for name, way in {**NUMPY, **GRAPH}.items():
            mask.assign(keep)
            run = way if name in GRAPH else lambda w, m, d, way=way: on_host(way, w, m, d)
            count = tf.constant(drop) if name in GRAPH else drop
            run(weight, mask, count)
            if not (mask.numpy() == expected).all():
                raise SystemExit(f"{name} gives another mask")
            del count

            def once(run=run, name=name, drop=drop, weight=weight, mask=mask, keep=keep):
                mask.assign(keep)
                run(weight, mask, tf.constant(drop) if name in GRAPH else drop)

            row[name] = measure(once, repeat)
        row["mask.assign alone"] = measure(lambda mask=mask, keep=keep: mask.assign(keep), repeat)
        found.append(row)
    return found


def holding(repeat):
    """Measure what holds the zeros after every step: read the weight, mask it, assign it."""
    values = np.random.default_rng(0).normal(size=SHAPE).astype("float32")
    weight, mask = tf.Variable(tf.constant(values)), tf.Variable(tf.constant(values > 0.5))
    ways = {
        "nothing": lambda w: tf.identity(w),
        "where": lambda w: tf.where(mask, w, tf.zeros_like(w)),
        "multiply": lambda w: w * tf.cast(mask, w.dtype),
        "multiply_no_nan": lambda w: tf.math.multiply_no_nan(w, tf.cast(mask, w.dtype)),
        "Select": lambda w: tf.raw_ops.Select(condition=mask, x=w, y=tf.zeros_like(w)),
    }
    found = {}
    for name, way in ways.items():
        step = tf.function(lambda way=way: weight.assign(way(tf.convert_to_tensor(weight))), autograph=False)
        found[name] = statistics.median(measure(step, repeat) for _ in range(3))
    return found


def main():
    """Measure, print, write."""
    from rich.console import Console
    from rich.table import Table

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="few repetitions")
    repeat = 5 if parser.parse_args().quick else 50
    rows, held = updates(repeat), holding(repeat)
    table = Table(title=f"CPU milliseconds of an update, {SHAPE[0]} x {SHAPE[1]} weights")
    table.add_column("way")
    for row in rows:
        table.add_column(f"{row['drop']} more at {row['sparsity']:.0%}", justify="right")
    for name in list(rows[0])[2:]:
        table.add_row(name, *(f"{row[name]:.2f}" for row in rows))
    console = Console(width=120)
    console.print(table)
    table = Table("what holds", "CPU milliseconds a step", title="Read, mask and assign in every step")
    for name, milliseconds in held.items():
        table.add_row(name, f"{milliseconds:.2f}")
    console.print(table)
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps({"cores": os.cpu_count(), "updates": rows, "holding": held}, indent=1) + "\n")
    print(f"Written to {RESULTS}")


if __name__ == "__main__":
    main()
