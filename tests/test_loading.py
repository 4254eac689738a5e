"""Models out of files that are damaged, too large, or would run code."""

import io
import zipfile
from pathlib import Path

import keras
import numpy as np
import pytest
from typer.testing import CliRunner

import kpipe
from kpipe.cli import app
from kpipe.data import Dataset
from kpipe.errors import KpipeError
from kpipe.loading import load_model
from kpipe.pipeline.source import ModelSource, make_model
from tests.export.mutants import mutants
from tests.models import build, samples


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    path = tmp_path_factory.mktemp("models") / "good.keras"
    build("dense").save(path)
    return path


def with_parts(source, path, **parts):
    """Copy a file of Keras with some parts changed; a part's name has "__" for its dot."""
    with zipfile.ZipFile(source) as before, zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as after:
        given = {name.replace("__", "."): content for name, content in parts.items()}
        for name in before.namelist():
            after.writestr(name, given.get(name, before.read(name)))
        for name in given.keys() - set(before.namelist()):
            after.writestr(name, given[name])
    return path


def test_a_good_file_gives_its_model(good):
    model, x = build("dense"), samples(build("dense"))
    np.testing.assert_array_equal(load_model(good)(x[0]), model(x[0]))


def judge(content, path, x, expected):
    """Load damaged content: it gives the model as it was, or an error of kpipe's that names the file."""
    path.write_bytes(content)
    try:
        model = load_model(path)
    except KpipeError as error:
        assert str(path) in str(error)
        return "refused"
    np.testing.assert_array_equal(model(x), expected)
    return "unharmed"


def sweep(good, folder, count, seed):
    x = samples(build("dense"))[0]
    expected = np.asarray(build("dense")(x))
    cases = mutants(good.read_bytes(), count, seed)
    return [judge(content, folder / f"{name}.keras", x, expected) for name, content in cases]


def test_damaged_files_are_refused_or_unharmed(good, tmp_path):
    assert sweep(good, tmp_path, 24, seed=0).count("refused") > 12


@pytest.mark.slow
def test_many_damaged_files_are_refused_or_unharmed(good, tmp_path):
    assert sweep(good, tmp_path, 200, seed=1).count("refused") > 100


@pytest.mark.parametrize("suffix", ["keras", "h5"])
def test_the_legacy_room_names_what_is_damaged(suffix, tmp_path):
    model, x = build("dense"), samples(build("dense"))[0]
    model.save(tmp_path / f"good.{suffix}")
    refused = 0
    for name, content in mutants((tmp_path / f"good.{suffix}").read_bytes(), 18, seed=3):
        (tmp_path / f"{name}.{suffix}").write_bytes(content)
        try:
            kpipe.legacy.load(tmp_path / f"{name}.{suffix}")(x)
        except KpipeError as error:
            assert name in str(error)
            refused += 1
    assert refused >= 6


def test_a_flipped_bit_of_a_weight_is_found(good, tmp_path):
    content = bytearray(good.read_bytes())
    kernel = build("dense").layers[0].kernel.numpy().tobytes()
    content[bytes(content).index(kernel) + len(kernel) // 2] ^= 1  # one bit of one weight
    (tmp_path / "m.keras").write_bytes(content)
    with pytest.raises(KpipeError, match=r"does not fit its checksum"):
        load_model(tmp_path / "m.keras")


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"", "no Keras model file"), (b"GIF89a" * 50, "no Keras model file"), (b"PK\x03\x04" + bytes(60), "or a broken")],
)
def test_foreign_files(tmp_path, content, message):
    (tmp_path / "m.keras").write_bytes(content)
    with pytest.raises(KpipeError, match=message):
        load_model(tmp_path / "m.keras")
    with pytest.raises(KpipeError, match="There is no file"):
        load_model(tmp_path / "none.keras")


def test_an_archive_of_something_else(tmp_path):
    with zipfile.ZipFile(tmp_path / "m.keras", "w") as archive:
        archive.writestr("letter.txt", "Dear Sir or Madam")
    with pytest.raises(KpipeError, match=r"config\.json"):
        load_model(tmp_path / "m.keras")


@pytest.mark.parametrize("config", [b"{", b"[]", b'{"class_name": "Sequential"}', b"\xff\xfe"])
def test_broken_configurations(good, tmp_path, config):
    with pytest.raises(KpipeError, match=r"m\.keras"):
        load_model(with_parts(good, tmp_path / "m.keras", config__json=config))


def test_what_unpacks_to_an_absurd_size_is_refused_before_it_is_unpacked(good, tmp_path):
    path = with_parts(good, tmp_path / "m.keras", extra__bin=bytes(2**20))
    load_model(path)  # a million zeros are no bomb
    packed = path.read_bytes()
    place = packed.rindex(b"PK\x01\x02")
    assert b"extra.bin" in packed[place:]
    lying = packed[: place + 24] + (2**31).to_bytes(4, "little") + packed[place + 28 :]  # the unpacked size
    path.write_bytes(lying)
    with pytest.raises(KpipeError, match=r"would unpack to 2,1\d\d,\d\d\d,\d\d\d"):
        load_model(path)


@pytest.fixture
def dangerous(tmp_path, monkeypatch):
    """Give a model whose lambda writes a file when it runs, and would when it is loaded; and that file."""
    monkeypatch.chdir(tmp_path)
    mark = tmp_path / "it-ran"
    layers = [keras.Input((4,), name="x"), keras.layers.Dense(3, name="logits")]
    lurking = keras.layers.Lambda(lambda x: (__import__("pathlib").Path("it-ran").touch(), x)[1], name="lurking")
    keras.Sequential([*layers, lurking], name="dangerous").save(tmp_path / "d.keras")
    mark.unlink(missing_ok=True)
    return tmp_path / "d.keras", mark


def test_nothing_runs_code_out_of_a_file(dangerous):
    path, mark = dangerous
    data = Dataset.__new__(Dataset)  # never looked at: the file is refused before
    for use in (
        load_model,
        kpipe.legacy.load,
        lambda path: make_model(ModelSource(load=str(path)), data, Path.cwd()),
    ):
        with pytest.raises(KpipeError, match="code"):
            use(path)
    result = CliRunner().invoke(app, ["show", str(path)])
    assert result.exit_code == 2 and "--unsafe" in " ".join(result.output.split())
    assert not mark.exists()


def test_who_trusts_a_file_says_so(dangerous):
    path, mark = dangerous
    model = load_model(path, safe_mode=False)
    model(np.ones((1, 4), "float32"))
    assert mark.exists()  # the control: this is what was refused
    assert CliRunner().invoke(app, ["show", str(path), "--unsafe"]).exit_code == 0


def test_no_module_is_imported_by_a_name_in_a_file(good, tmp_path, monkeypatch):
    (tmp_path / "lurking_module.py").write_text("open('it-ran', 'w').close()\n\n\nclass Dense:\n    pass\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    with zipfile.ZipFile(good) as archive:
        config = archive.read("config.json").decode()
    changed = config.replace(
        '"module": "keras.layers", "class_name": "Dense"', '"module": "lurking_module", "class_name": "Dense"'
    )
    assert changed != config
    with pytest.raises(KpipeError, match=r"m\.keras"):
        load_model(with_parts(good, tmp_path / "m.keras", config__json=changed.encode()))
    assert not (tmp_path / "it-ran").exists()


def test_weights_of_a_model_may_be_packed(good, tmp_path):
    """Keras stores without packing; who packs a file anew may load it still."""
    with zipfile.ZipFile(io.BytesIO(with_parts(good, tmp_path / "m.keras").read_bytes())) as archive:
        assert {part.compress_type for part in archive.infolist()} == {zipfile.ZIP_DEFLATED}
    load_model(tmp_path / "m.keras")
