import keras
import numpy as np
import pytest
import tensorflow as tf

from kpipe.data import Dataset, augmented, batches, load, samples, weighted_batches
from kpipe.errors import KpipeError


class Pages(keras.utils.PyDataset):
    def __init__(self, x, y):
        super().__init__()
        self.x, self.y = x, y

    def __len__(self):
        return 3

    def __getitem__(self, index):
        return self.x[2 * index : 2 * index + 2], self.y[2 * index : 2 * index + 2]


X = np.arange(12, dtype="float32").reshape(6, 2)
Y = np.arange(6)


def forms():
    def generate():
        for start in (0, 2, 4):
            yield X[start : start + 2], Y[start : start + 2]

    return {
        "tuple": (X, Y),
        "tf.data": tf.data.Dataset.from_tensor_slices((X, Y)).batch(2),
        "PyDataset": Pages(X, Y),
        "generator function": generate,
        "iterator": generate(),
        "tensors": (tf.constant(X), tf.constant(Y)),
    }


@pytest.mark.parametrize("form", forms())
@pytest.mark.parametrize("limit", [None, 3, 6])
def test_every_form_of_data_gives_the_same_samples(form, limit):
    parts = list(batches(forms()[form], batch_size=2, limit=limit))
    assert all(isinstance(x, np.ndarray) for x, _ in parts)
    np.testing.assert_array_equal(np.concatenate([x for x, _ in parts]), X[:limit])
    np.testing.assert_array_equal(np.concatenate([y for _, y in parts]), Y[:limit])


def test_data_without_labels_and_with_structure():
    assert [y for _, y in batches(X)] == [None]
    (x, _), *_ = batches({"a": X, "b": 2 * X}, batch_size=4)
    np.testing.assert_array_equal(x["b"], 2 * X[:4])
    (x, y), *_ = batches(([X, X], Y, np.ones(6)), batch_size=4)
    assert len(x) == 2 and y.tolist() == [0, 1, 2, 3]
    _, (_, _, weights) = weighted_batches((X, Y, np.arange(6.0)), batch_size=4)
    assert weights.tolist() == [4, 5] and [w for *_, w in weighted_batches((X, Y))] == [None]
    with pytest.raises(KpipeError, match="different lengths"):
        list(batches((X, Y[:3])))
    with pytest.raises(KpipeError, match="type int"):
        list(batches(3))


def two_inputs(structure=list):
    a, b = keras.Input((2,), name="a"), keras.Input((3,), name="b")
    out = keras.layers.Concatenate()([a, b])
    return keras.Model({"b": b, "a": a} if structure is dict else [a, b], out)


def test_samples_follow_the_order_of_the_models_inputs():
    a, b = np.ones((4, 2), "float32"), np.zeros((4, 3), "float32")
    for model in (two_inputs(), two_inputs(dict)):
        for data in ({"b": b, "a": a}, [a, b], ([a, b], np.arange(4)), tf.data.Dataset.from_tensors({"a": a, "b": b})):
            got = samples(data, model, limit=3)
            assert [array.shape for array in got] == [(3, 2), (3, 3)]


@pytest.mark.parametrize(
    ("data", "match"),
    [
        (np.zeros((0, 2), "float32"), "calibration data is empty"),
        (np.zeros((3, 5), "float32"), r"'point' has samples of shape \(5,\); expected \(2,\)"),
        (np.zeros((3,), "float32"), "'point' has samples of shape"),
        (np.full((3, 2), np.nan, "float32"), "'point' holds 6 NaN"),
        ([X, X], "has 2 input arrays"),
        ({"pint": X}, "has no point"),
    ],
)
def test_bad_samples_are_refused_by_name(data, match):
    model = keras.Sequential([keras.Input((2,), name="point"), keras.layers.Dense(1)])
    with pytest.raises(KpipeError, match=match):
        samples(data, model)


def test_digits_are_the_bundled_ones_split_by_seed():
    from sklearn.datasets import load_digits

    data, again, other = load("digits"), load("digits"), load("digits", seed=1)
    parts = (data.train, data.validation, data.test)
    assert data.input_shape == (8, 8, 1) and data.classes == 10 and data.train[0].dtype == np.float32
    assert sum(len(y) for _, y in parts) == 1797
    images = np.sort(np.concatenate([x for x, _ in parts]).reshape(1797, -1).sum(axis=1))
    np.testing.assert_allclose(images, np.sort(load_digits().images.reshape(1797, -1).sum(axis=1)) / 16, rtol=1e-6)
    np.testing.assert_array_equal(data.train[0], again.train[0])
    assert not np.array_equal(data.train[0], other.train[0])
    rows = {row.tobytes() for row in data.train[0]}
    assert all(row.tobytes() in rows for row in data.calibration)
    assert data.labels == tuple("0123456789") and data.scale == 1 / 16


def write(folder, name="mine", **changes):
    rng = np.random.default_rng(0)
    arrays = {
        "x_train": rng.integers(0, 256, (20, 4, 5), dtype=np.uint8),
        "y_train": np.arange(20, dtype=np.uint8) % 3,
        "x_test": rng.integers(0, 256, (6, 4, 5), dtype=np.uint8),
        "y_test": np.zeros((6, 1), np.uint8),
    }
    arrays.update(changes)
    path = folder / f"{name}.npz"
    np.savez(path, **{key: value for key, value in arrays.items() if value is not None})
    return path, arrays


def test_npz_by_path_and_by_name(tmp_path, monkeypatch):
    path, arrays = write(tmp_path)
    by_path = load(str(path), validation_fraction=0.25)
    monkeypatch.setenv("KPIPE_DATA", str(tmp_path))
    by_name = load("mine", validation_fraction=0.25)
    for data in (by_path, by_name):
        assert data.name == "mine" and data.classes == 3 and data.input_shape == (4, 5, 1)
        assert len(data.train[0]) == 15 and len(data.validation[0]) == 5
        np.testing.assert_array_equal(data.test[0][..., 0], arrays["x_test"].astype("float32") / 255)
        assert data.test[1].shape == (6,) and data.test[1].dtype == np.int64
        assert data.labels == () and data.scale == 1 / 255
    for labels, told in ((["a", "b", "c"], ("a", "b", "c")), (["a", "b"], ())):
        assert load(str(write(tmp_path, labels=np.array(labels))[0])).labels == told


def test_series_of_floats_get_no_channel_axis(tmp_path):
    path, _ = write(tmp_path, x_train=np.ones((20, 4, 5), "float16"), x_test=np.ones((6, 4, 5), "float16"))
    data = load(str(path))
    assert data.input_shape == (4, 5) and data.train[0].dtype == np.float32


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"y_test": None}, "has no y_test"),
        ({"y_train": np.zeros(3)}, "20 training inputs for 3 labels"),
        ({"x_test": np.zeros((6, 7))}, "shapes differ"),
        ({"x_train": np.zeros((20, 2), object)}, "without pickle"),
    ],
)
def test_bad_npz_is_refused(tmp_path, changes, match):
    path, _ = write(tmp_path, **changes)
    with pytest.raises(KpipeError, match=match):
        load(str(path))


def test_a_missing_source_says_where_it_looked(tmp_path, monkeypatch):
    monkeypatch.setenv("KPIPE_DATA", str(tmp_path))
    with pytest.raises(KpipeError, match=r"'mnits' not found.*mnits\.npz.*Did you mean 'mnist'"):
        load("mnits")
    with pytest.raises(KpipeError, match="does not exist"):
        load(str(tmp_path / "absent.npz"))
    (tmp_path / "broken.npz").write_bytes(b"no zip")
    with pytest.raises(KpipeError, match="broken"):
        load("broken")
    with pytest.raises(KpipeError, match="takes no options"):
        load("digits", color=True)
    with pytest.raises(KpipeError, match="validation_fraction"):
        load("digits", validation_fraction=1.0)


def test_a_download_that_fails_says_where_it_looked(tmp_path, monkeypatch):
    def fail():
        raise Exception("URL fetch failure")

    monkeypatch.setenv("KPIPE_DATA", str(tmp_path))
    monkeypatch.setattr(keras.datasets.mnist, "load_data", fail)
    with pytest.raises(KpipeError, match=r"(?s)mnist\.npz.*URL fetch failure.*set KPIPE_DATA"):
        load("mnist")


def test_a_function_gives_the_data(tmp_path, monkeypatch):
    (tmp_path / "source_of_mine.py").write_text(
        "import numpy as np\n"
        "def make(count=10):\n"
        "    return (np.ones((count, 3)), np.arange(count) % 2), (np.ones((4, 3)), np.zeros(4, int))\n"
        "def wrong():\n"
        "    return 3\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    data = load("source_of_mine:make", count=30)
    assert isinstance(data, Dataset) and len(data.train[0]) == 27 and data.classes == 2
    with pytest.raises(KpipeError, match="returned int"):
        load("source_of_mine:wrong")
    with pytest.raises(KpipeError, match="cannot be imported"):
        load("source_of_mine:absent")
    with pytest.raises(KpipeError, match="refused its options"):
        load("source_of_mine:make", size=3)


@pytest.mark.parametrize(
    ("code", "match", "cause"),
    [
        ("def make(:\n", r"cannot be imported: SyntaxError", SyntaxError),
        ("1 / 0\n", r"cannot be imported: ZeroDivisionError", ZeroDivisionError),
        ("make = 3\n", r"is int; expected a function", None),
        ("def make():\n    return len(3)\n", r"failed with TypeError: object of type 'int'", TypeError),
        ("def make():\n    raise OSError('no disk')\n", r"failed with OSError: no disk", OSError),
    ],
)
def test_a_function_that_fails_is_named_with_its_cause(tmp_path, monkeypatch, request, code, match, cause):
    module = f"failing_source_{request.node.callspec.indices['code']}"
    (tmp_path / f"{module}.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(KpipeError, match=f"'{module}:make' {match}") as caught:
        load(f"{module}:make")
    assert cause is None or isinstance(caught.value.__cause__, cause)


def test_samples_come_in_the_types_of_the_inputs():
    net = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    (array,) = samples(np.arange(6, dtype="uint8").reshape(3, 2), net)
    assert array.dtype == np.float32 and array.tolist() == [[0.0, 1.0], [2.0, 3.0], [4.0, 5.0]]


TALK = ("Play the song,music", '"Play, play it!",music', "Rain today?,weather")


def test_a_pair_of_csv_files_gives_token_ids(tmp_path, monkeypatch):
    write_lines(
        tmp_path / "talk_train.csv",
        "text,label",
        "Play the song,music",
        '"Play, play it!",music',
        "Rain today?,weather",
    )
    write_lines(tmp_path / "talk_test.csv", "label,text", "weather,is it today")
    monkeypatch.setenv("KPIPE_DATA", str(tmp_path))
    data = load("talk", tokens=4, vocabulary=20, validation_fraction=0.4)
    assert data.classes == 2 and data.input_shape == (4,) and data.test[0].dtype == np.int32
    assert data.labels == ("music", "weather") and data.scale is None
    rows = np.concatenate([data.train[0], data.validation[0]])
    assert (rows == 2).sum() == 3  # "play" is the most frequent word; 0 pads, 1 is an unknown word
    assert data.test[0][0, 0] == 1 and data.test[0][0, 3] == 0 and data.test[1].tolist() == [1]
    with pytest.raises(KpipeError, match="refused its options"):
        load("talk", words=4)
    with pytest.raises(KpipeError, match="tokens=0"):
        load("talk", tokens=0)


def write_lines(path, *lines):
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


@pytest.mark.parametrize(
    "lines, message",
    [
        (["text,class", "a,b"], "no column label; it has text, class"),
        (["text,label", "a,strange"], "classes \\['strange'\\]"),
        (["text,label"], "no rows"),
        (["text,label", "a"], "fewer than two columns"),
    ],
)
def test_a_csv_file_that_does_not_fit_is_refused(lines, message, tmp_path, monkeypatch):
    write_lines(tmp_path / "talk_train.csv", "text,label", "a,b")
    write_lines(tmp_path / "talk_test.csv", *lines)
    monkeypatch.setenv("KPIPE_DATA", str(tmp_path))
    with pytest.raises(KpipeError, match=message):
        load("talk")


def shifted(image, down, right):
    out = np.zeros_like(image)
    height, width, _ = image.shape
    rows, columns = slice(max(0, down), height + min(0, down)), slice(max(0, right), width + min(0, right))
    out[rows, columns] = image[max(0, -down) : height - max(0, down), max(0, -right) : width - max(0, right)]
    return out


def test_images_are_mirrored_and_shifted_one_by_one():
    images = np.random.default_rng(0).uniform(1, 2, (40, 6, 7, 2)).astype("float32")
    made = list(augmented(images, np.arange(40), 16, flip=True, shift=2, seed=3))
    assert sorted(np.concatenate([labels for _, labels in made])) == list(range(40))
    moves = {}
    for varied, label in zip(np.concatenate([x for x, _ in made]), np.concatenate([y for _, y in made]), strict=True):
        for mirrored in (False, True):
            image = images[label][:, ::-1] if mirrored else images[label]
            for down in range(-2, 3):
                for right in range(-2, 3):
                    if np.array_equal(varied, shifted(image, down, right)):
                        moves[label] = (mirrored, down, right)
    assert len(moves) == 40  # every image is one of its 50 variants
    assert all(len({move[part] for move in moves.values()}) > 1 for part in range(3))


def test_augmentation_follows_the_seed_and_changes_from_epoch_to_epoch():
    images = np.random.default_rng(0).random((8, 5, 5, 1), dtype="float32")
    epochs = [
        [x.numpy() for _ in range(2) for x, _ in data]
        for data in (augmented(images, np.arange(8), 8, flip=True, shift=1, seed=seed) for seed in (0, 0, 1))
    ]
    np.testing.assert_array_equal(epochs[0][0], epochs[1][0])
    assert not np.array_equal(epochs[0][0], epochs[0][1]) and not np.array_equal(epochs[0][0], epochs[2][0])
    ((same, order),) = augmented(images, np.arange(8), 8)
    np.testing.assert_array_equal(same, images[order])
    with pytest.raises(KpipeError, match=r"shift=5.*\[0, 5\)"):
        augmented(images, np.arange(8), 8, shift=5)
    with pytest.raises(KpipeError, match="expected images"):
        augmented(images[..., 0], np.arange(8), 8)
