"""Files joined into one of several signatures, against the models they were made of and ai-edge-litert itself."""

import dataclasses

import keras
import numpy as np
import pytest
import tensorflow as tf
from ai_edge_litert.interpreter import Interpreter

import kpipe
from kpipe.errors import ExportError
from kpipe.export import ENGINES, FORMATS, dissect, load_runtime, read_metadata
from kpipe.export.litert import signatures
from kpipe.export.litert.flatbuffer import read, write
from kpipe.export.litert.metadata import embed
from kpipe.export.litert.text import text

RNG = np.random.default_rng(0)
SIZES = {"encode": (6,), "decode": (40,), "both": (6,)}


def autoencoder():
    """Build an encoder, a decoder, and the two as one model over the same layers."""
    keras.utils.set_random_seed(0)
    x, code = keras.Input((6,), name="x"), keras.Input((40,), name="code")
    encode = keras.layers.Dense(40, activation="relu", name="code_of")
    decode = keras.layers.Dense(6, name="x_of")
    return {
        "encode": keras.Model(x, encode(x), name="encoder"),
        "decode": keras.Model(code, decode(code), name="decoder"),
        "both": keras.Model(x, decode(encode(x)), name="autoencoder"),
    }


def inputs_of(name, count=5):
    return RNG.normal(size=(count, *SIZES[name])).astype("float32")


def exported(models, folder, **arguments):
    return {name: kpipe.export(model, folder / f"{name}.tflite", **arguments) for name, model in models.items()}


@pytest.fixture(scope="module")
def joined(tmp_path_factory):
    folder, models = tmp_path_factory.mktemp("joined"), autoencoder()
    files = exported(models, folder)
    return models, files, kpipe.join_signatures(files, folder / "all.tflite")


def test_each_signature_answers_as_its_model(joined):
    models, _, file = joined
    interpreter = Interpreter(model_path=str(file.path))
    assert list(interpreter.get_signature_list()) == list(models)
    answers = {}
    for name, model in models.items():
        x = inputs_of(name, 1)
        runner = interpreter.get_signature_runner(name)
        (argument,) = runner.get_input_details()
        (answers[name],) = runner(**{argument: x}).values()
        np.testing.assert_allclose(answers[name], model(x), atol=1e-6)
        with load_runtime(file, signature=name) as runtime:
            np.testing.assert_array_equal(runtime.run([x])[0], answers[name])
            many = inputs_of(name)
            np.testing.assert_allclose(runtime.run([many])[0], model(many), atol=1e-6)
            with pytest.raises(ExportError, match="takes 1 inputs; received 2"):
                runtime.run([many, many])
    assert answers["encode"].shape != answers["decode"].shape  # the control: they are not one and the same


def test_shared_weights_are_stored_once(joined):
    _, files, file = joined
    weights = 2 * 6 * 40 * 4  # bytes of the two kernels, which stand in two files each
    alone = {name: one.bytes for name, one in files.items()}
    assert file.bytes < sum(alone.values()) - weights
    contents = dissect(file)
    assert sum(node.bytes for node in contents.nodes) < weights + (6 + 40) * 4 + 100
    assert [port.name for port in contents.inputs] == ["encode/x", "decode/code", "both/x"]
    assert [port.name for port in contents.outputs] == ["encode/code_of", "decode/x_of", "both/x_of"]
    assert [port.name for port in dissect(files["encode"]).inputs] == ["x"]


@pytest.mark.parametrize("engine", [name for name in ENGINES if ENGINES[name].format == "tflite"])
def test_engines_run_a_signature(joined, engine):
    models, _, file = joined
    for name in ("decode", "both"):
        x = inputs_of(name)
        with load_runtime(file, engine=engine, signature=name) as runtime:
            np.testing.assert_allclose(runtime.run([x])[0], models[name](x), atol=1e-5)
    latency = kpipe.benchmark(file, runs=3, warmup=1, engine=engine, signature="decode", cold=True)
    assert latency.signature == "decode" and latency.median_ms > 0 and latency.cold is not None
    assert "(decode)" in str(latency)
    with pytest.raises(ExportError, match="several signatures"):
        kpipe.benchmark(file, runs=1, engine=engine, signature="decode", per_op=True)


def test_a_signature_is_verified(joined):
    models, files, file = joined
    assert kpipe.verify(file, models["decode"], signature="decode").max_relative_error < 1e-5
    assert kpipe.verify(files["decode"], models["decode"], signature="serving_default").samples == 64
    with pytest.raises(ExportError, match=r"relative error|agree"):
        other = keras.models.clone_model(models["decode"])
        kpipe.verify(file, other, signature="decode")
    for use in (load_runtime, lambda path: kpipe.verify(path, models["both"]), kpipe.benchmark):
        with pytest.raises(ExportError, match="several signatures: encode, decode, both"):
            use(file)
    with pytest.raises(ExportError, match="Did you mean 'encode'"):
        load_runtime(file, signature="encoder")


def test_a_file_from_elsewhere_is_tried_in_all_its_signatures(joined, tmp_path):
    path = tmp_path / "other.tflite"
    path.write_bytes(embed(joined[2].path.read_bytes(), "{}"))  # not the bytes that this process has written
    with load_runtime(path, signature="both") as runtime:
        assert runtime.run([inputs_of("both")])[0].shape == (5, 6)


def test_the_metadata_of_all_files_are_kept(tmp_path):
    models = autoencoder()
    encode = kpipe.export(models["encode"], tmp_path / "e.tflite", metadata={"note": "first"})
    decode = kpipe.export(models["decode"], tmp_path / "d.tflite")
    file = kpipe.join_signatures({"encode": encode, "decode": str(decode.path)}, tmp_path / "new" / "both.tflite")
    said = read_metadata(file.path)
    assert said == file.metadata
    assert said["precision"] == "float32" and said["kpipe"] == kpipe.__version__
    assert said["signatures"]["encode"]["note"] == "first"
    assert said["signatures"]["decode"]["model"] == "decoder"


def test_one_file_gets_a_name(joined, tmp_path):
    models, files, _ = joined
    file = kpipe.join_signatures({"predict": files["both"]}, tmp_path / "named.tflite")
    assert list(Interpreter(model_path=str(file.path)).get_signature_list()) == ["predict"]
    assert kpipe.verify(file, models["both"]).samples == 64


def test_whole_numbers_are_joined(tmp_path):
    models = autoencoder()
    quantized = {name: kpipe.quantize(model, calibration=inputs_of(name, 64)) for name, model in models.items()}
    files = exported(quantized, tmp_path)
    file = kpipe.join_signatures(files, tmp_path / "all.tflite")
    assert file.precision == "int8"
    for name in models:
        x = inputs_of(name)
        with load_runtime(file, signature=name) as one, load_runtime(files[name]) as alone:
            assert one.inputs == alone.inputs and one.outputs == alone.outputs
            np.testing.assert_array_equal(one.run([x])[0], alone.run([x])[0])
    assert kpipe.verify(file, quantized["both"], data=inputs_of("both", 64), signature="both").within_two_steps > 0.97


def looping(units, name):
    """Build a recurrent layer, which is a loop over graphs of its own in a file."""
    x = keras.Input((4, 3), name="x")
    return keras.Model(x, keras.layers.GRU(units, name="gru")(x), name=name)


def test_loops_find_their_graphs(tmp_path, monkeypatch):
    keras.utils.set_random_seed(0)
    models = {"small": looping(2, "small"), "large": looping(5, "large")}
    files = exported(models, tmp_path)
    file = kpipe.join_signatures(files, tmp_path / "both.tflite")
    x = RNG.normal(size=(3, 4, 3)).astype("float32")
    for name, model in models.items():
        with load_runtime(file, signature=name) as runtime:
            np.testing.assert_allclose(runtime.run([x])[0], model(x), atol=1e-5)
    monkeypatch.setattr(signatures, "_move_graphs", lambda operator, by: None)  # the control
    path = tmp_path / "wrong.tflite"
    path.write_bytes(signatures.join({name: one.path.read_bytes() for name, one in files.items()}))
    with pytest.raises(ExportError), load_runtime(path, signature="large") as runtime:
        if not np.allclose(runtime.run([x])[0], models["large"](x), atol=1e-5):
            raise ExportError("it computes otherwise")


def test_open_batches_are_joined(tmp_path):
    models = autoencoder()
    file = kpipe.join_signatures(exported(models, tmp_path, batch=None), tmp_path / "all.tflite")
    for count in (1, 5, 2):
        x = inputs_of("both", count)
        with load_runtime(file, signature="both") as runtime:
            assert runtime.inputs[0].shape == (None, 6)
            np.testing.assert_allclose(runtime.run([x])[0], models["both"](x), atol=1e-6)


def test_a_signature_that_answers_otherwise_is_refused(joined, tmp_path, monkeypatch):
    def swapped(contents):
        names, files = list(contents), list(contents.values())
        return signatures.join(dict(zip(names, [files[1], files[0]], strict=True)))

    wrong = dataclasses.replace(FORMATS["tflite"], join=swapped)
    keras.utils.set_random_seed(1)
    models = {name: keras.Sequential([keras.Input((3,)), keras.layers.Dense(3)]) for name in ("one", "two")}
    files = exported(models, tmp_path)
    path = tmp_path / "folder" / "both.tflite"
    with monkeypatch.context() as patch:
        patch.setitem(FORMATS._objects, "tflite", wrong)
        with pytest.raises(ExportError, match="'one' of the joined file answers otherwise"):
            kpipe.join_signatures(files, path)
    assert not path.parent.exists()
    kpipe.join_signatures(files, path)  # the control


def test_bad_requests(joined, tmp_path):
    models, files, file = joined
    half = kpipe.export(models["encode"], tmp_path / "half.tflite", precision="float16")
    onnx = kpipe.export(models["encode"], tmp_path / "net.onnx")
    place = tmp_path / "all.tflite"
    for given, where, why in (
        ({}, place, "expected a mapping"),
        ([files["encode"]], place, "expected a mapping"),
        ({" ": files["encode"]}, place, "name of a signature"),
        ({"a\0b": files["encode"]}, place, "name of a signature"),
        ({"encode": None}, place, "expected a file"),
        ({"encode": files["encode"]}, files["encode"].path, "Write the joined one elsewhere"),
        ({"encode": files["encode"], "decode": half}, place, "precision 'float32' and 'float16'"),
        ({"encode": onnx}, tmp_path / "all.onnx", "no signatures"),
        ({"encode": onnx}, place, "not of the same format"),
        ({"encode": tmp_path / "none.tflite"}, place, "no file"),
        ({"all": file}, place, "has 3 signatures .*Join the files that it was made of"),
        ({"encode": files["encode"]}, tmp_path / "all.xyz", "Unknown suffix"),
    ):
        with pytest.raises(ExportError, match=why):
            kpipe.join_signatures(given, where)
    assert not place.exists()
    with pytest.raises(ExportError, match="no signatures"):
        load_runtime(onnx, signature="encode")


def test_the_newest_runtime_is_asked_for(joined):
    content = joined[1]["encode"].path.read_bytes()
    older, newer = signatures.read(content), signatures.read(content)
    for model, version in ((older, b"1.5.0"), (newer, b"1.14.0")):
        for entry in model.metadata:
            if signatures.text(entry.name) == signatures.NEEDS_RUNTIME:
                model.buffers[entry.buffer].data = np.frombuffer(version, np.uint8)
    both = {"a": signatures.packed(older), "b": signatures.packed(newer)}
    assert signatures._needed(signatures.read(signatures.join(both))) == (1, 14, 0)
    assert signatures._needed(older) == (1, 5, 0)  # the control


def test_a_signature_is_judged_by_what_it_computes_itself(tmp_path):
    keras.utils.set_random_seed(0)
    models = {f"s{n}": keras.Sequential([keras.Input((8,)), keras.layers.Dense(64)]) for n in range(4)}
    files = exported(models, tmp_path, precision="int8_dynamic")
    file = kpipe.join_signatures(files, tmp_path / "all.tflite")
    kernel = models["s0"].weights[0]
    noise = np.random.default_rng(0).normal(size=kernel.shape)
    for scale, refused in ((0.0, False), (0.03, True)):  # beyond 0.02, within 0.02 times the root of four layers
        kernel.assign(kernel + scale * np.abs(kernel).max() * noise)
        for path, how in ((files["s0"], {}), (file, {"signature": "s0"})):
            if refused:
                with pytest.raises(ExportError, match=r"0\.02"):
                    kpipe.verify(path, models["s0"], **how)
            else:
                kpipe.verify(path, models["s0"], **how)


def test_what_an_interpreter_keeps_is_not_joined(tmp_path):
    class Counter(tf.Module):
        def __init__(self, start):
            super().__init__()
            self.count = tf.Variable(start, name="count")

        @tf.function(input_signature=[tf.TensorSpec((1,), tf.int32, name="x")])
        def add(self, x):
            return {"y": self.count.assign_add(x)}

    paths = {}
    for name, start in (("a", [0]), ("b", [100])):
        counter = Counter(start)
        tf.saved_model.save(counter, str(tmp_path / name), signatures={"add": counter.add})
        converter = tf.lite.TFLiteConverter.from_saved_model(str(tmp_path / name))
        converter.experimental_enable_resource_variables = True
        paths[name] = tmp_path / f"{name}.tflite"
        paths[name].write_bytes(converter.convert())
    with pytest.raises(ExportError, match=r"'a' has .*VAR_HANDLE.*keeps variables"):
        kpipe.join_signatures(paths, tmp_path / "both.tflite")


def test_an_input_that_is_an_output_too_keeps_both_names(tmp_path):
    x = keras.Input((3,), name="x")
    handed = keras.Model(x, {"same": x, "twice": keras.layers.Rescaling(2.0)(x)})
    plain = keras.Model(x, {"y": keras.layers.Dense(2)(x)})
    files = exported({"handed": handed, "plain": plain}, tmp_path)
    file = kpipe.join_signatures(files, tmp_path / "both.tflite")
    given = RNG.normal(size=(2, 3)).astype("float32")
    with load_runtime(file, signature="handed") as runtime:
        assert [port.name for port in runtime.inputs] == ["x"]
        answers = dict(zip([port.name for port in runtime.outputs], runtime.run([given]), strict=True))
    np.testing.assert_array_equal(answers["same"], given)
    np.testing.assert_allclose(answers["twice"], 2 * given)
    for path, how in ((files["handed"], {}), (file, {"signature": "handed"})):
        with pytest.raises(ExportError, match="gives an input out as it is"):
            load_runtime(path, engine="litert_compiled", **how)


def test_a_file_whose_only_signature_is_not_its_first_graph(joined, tmp_path):
    models, _, file = joined
    model = read(file.path.read_bytes())
    model.signatureDefs = [one for one in model.signatureDefs if text(one.signatureKey) == "decode"]
    path = tmp_path / "decode.tflite"
    path.write_bytes(write(model))
    x = inputs_of("decode")
    for how in ({}, {"signature": "decode"}, {"engine": "litert_compiled"}):
        with load_runtime(path, **how) as runtime:
            np.testing.assert_allclose(runtime.run([x])[0], models["decode"](x), atol=1e-5)


def test_models_without_kernels_are_joined_as_they_were_asked_for(tmp_path):
    models = {
        "scale": keras.Sequential([keras.Input((3,)), keras.layers.Rescaling(2.0)]),
        "net": keras.Sequential([keras.Input((3,)), keras.layers.Dense(2)]),
    }
    file = kpipe.join_signatures(exported(models, tmp_path, precision="float16"), tmp_path / "all.tflite")
    assert file.precision == "float16"
    assert {said["precision"] for said in file.metadata["signatures"].values()} == {"float16"}


def test_nothing_is_stored_that_nothing_reads(tmp_path):
    models = autoencoder()
    labels = [f"class number {n}" for n in range(6)]
    files = {
        name: kpipe.export(models[name], tmp_path / f"{name}.tflite", metadata={"labels": labels})
        for name in ("both", "decode")
    }
    file = kpipe.join_signatures(files, tmp_path / "all.tflite")
    content = file.path.read_bytes()
    assert content.count(labels[3].encode()) == len(files)  # once for each signature, in the file's own words
    model = read(content)
    taken = {tensor.buffer for graph in model.subgraphs for tensor in graph.tensors}
    taken |= {entry.buffer for entry in model.metadata}
    assert taken | {0} == set(range(len(model.buffers)))
