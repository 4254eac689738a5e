"""Sentences with their classes out of CSV files, as token ids."""

import csv
from pathlib import Path

import keras
import numpy as np

from kpipe.errors import KpipeError

COLUMNS = ("text", "label")


def sentences(
    train: str | Path, test: str | Path, tokens: int = 24, vocabulary: int = 2000
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Read two CSV files of sentences and classes, and turn each sentence into token ids.

    Words are written small and without punctuation; 0 pads a sentence, 1 stands for a word that is not among the most
    frequent ones of the training file, the others follow by frequency. Classes are numbered by their names' order.

    Args:
        train: UTF-8 file with a header that has the columns text and label.
        test: Likewise; it may have no class that the other lacks.
        tokens: Length of a sentence: longer ones are cut, shorter ones padded at the end.
        vocabulary: Number of token ids.

    Returns:
        x_train (sentences, tokens) int32, y_train (sentences,) int64, x_test, y_test.

    Raises:
        KpipeError: When a file cannot be read, lacks a column, or holds a class that the training file lacks; when
            `tokens` or `vocabulary` is too small.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     file = Path(folder) / "talk.csv"
        ...     _ = file.write_text("\\n".join(["text,label", "Good day!,greet", "Good bye,leave"]))
        ...     x, y, _, _ = sentences(file, file, tokens=3, vocabulary=10)
        >>> x[:, 0].tolist(), x[:, 2].tolist(), y.tolist()
        ([2, 2], [0, 0], [0, 1])
    """
    for name, value, least in (("tokens", tokens, 1), ("vocabulary", vocabulary, 3)):
        if not isinstance(value, int) or isinstance(value, bool) or value < least:
            raise KpipeError(f"Received {name}={value!r}; expected an integer of at least {least}.")
    (texts, labels), (test_texts, test_labels) = _read(Path(train)), _read(Path(test))
    classes = class_names(Path(train))
    strange = sorted(set(test_labels) - set(classes))
    if strange:
        raise KpipeError(f"{test} has the classes {strange}, which {train} lacks; it has {list(classes)}.")
    vectorize = keras.layers.TextVectorization(max_tokens=vocabulary, output_sequence_length=tokens)
    vectorize.adapt(texts)

    def numbered(lines: list[str], names: list[str]) -> tuple[np.ndarray, np.ndarray]:
        return np.asarray(vectorize(lines), "int32"), np.asarray([classes.index(name) for name in names], "int64")

    return (*numbered(texts, labels), *numbered(test_texts, test_labels))


def class_names(train: Path) -> tuple[str, ...]:
    """Give the classes of a CSV file of sentences in the order by which they are numbered."""
    return tuple(sorted(set(_read(train)[1])))


def _read(path: Path) -> tuple[list[str], list[str]]:
    try:
        with path.open(encoding="utf-8", newline="") as file:
            reader = csv.DictReader(file)
            missing = [name for name in COLUMNS if name not in (reader.fieldnames or ())]
            rows = list(reader)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise KpipeError(f"The data file {path} cannot be read: {error}.") from error
    if missing:
        found = ", ".join(reader.fieldnames or ()) or "no columns"
        raise KpipeError(f"The data file {path} has no column {', '.join(missing)}; it has {found}.")
    if not rows or any(row[name] is None for row in rows for name in COLUMNS):
        raise KpipeError(f"The data file {path} has no rows, or a row with fewer than two columns.")
    return [row["text"] for row in rows], [row["label"] for row in rows]
