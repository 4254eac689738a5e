"""The names of classes: those that are known, and those that a source tells."""

import os
from pathlib import Path

import numpy as np

from kpipe.data.sentences import class_names

DIGITS = tuple("0123456789")
CLOTHES = ("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot")
THINGS = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")


def names_on_disk(source: str) -> tuple[str, ...]:
    """Give the names of the classes that a source on disk tells: `labels` of a .npz file, or those of a CSV pair."""
    stored = stored_place(source)
    path = Path(source).expanduser() if source.endswith(".npz") else stored
    if pair := csv_pair(stored):
        return class_names(pair[0])
    if path is None or not path.is_file():
        return ()
    with np.load(path, allow_pickle=False) as held:
        return tuple(str(name) for name in held["labels"]) if "labels" in held.files else ()


def stored_place(source: str) -> Path | None:
    """Give the place of a source in the folder that KPIPE_DATA names, whether it is there or not."""
    folder = os.environ.get("KPIPE_DATA")
    return Path(folder).expanduser() / f"{source}.npz" if folder else None


def csv_pair(stored: Path | None) -> list[Path]:
    """Give the two CSV files of a source, where both are there."""
    pair = [Path(f"{stored.with_suffix('')}_{part}.csv") for part in ("train", "test")] if stored else []
    return pair if pair and all(file.exists() for file in pair) else []
