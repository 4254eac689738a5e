"""Each stage on a net and data so small that a training takes a second."""

import json
import warnings
from dataclasses import replace

import keras
import numpy as np
import pytest
from pydantic import ValidationError

from kpipe.data import Dataset
from kpipe.errors import ExportError, KpipeError, NoEffectWarning
from kpipe.export import load_runtime, read_metadata
from kpipe.fake_quant import FakeQuant, scheme_of
from kpipe.measure import measure
from kpipe.pipeline import Baseline, Context, FloatModel, ModelSource, QuantizedModel
from kpipe.pipeline.ledger import noting
from kpipe.quantize import is_quantized
from kpipe.stages import Distill, Export, PruneFilters, PruneWeights, Quantize, Train
from kpipe.stages.fields import Augmentation, Optimizer, Target, Teaching
from kpipe.stages.training import make_optimizer, steps_in


def small(classes=3):
    return keras.Sequential(
        [
            keras.Input((6, 6, 1), name="image"),
            keras.layers.Conv2D(8, 3, name="conv1"),
            keras.layers.BatchNormalization(momentum=0.5, name="bn"),
            keras.layers.ReLU(name="relu"),
            keras.layers.Conv2D(12, 3, activation="relu", name="conv2"),
            keras.layers.Flatten(name="flatten"),
            keras.layers.Dense(classes, name="logits"),
        ],
        name="small",
    )


@pytest.fixture(scope="module")
def data():
    rng = np.random.default_rng(0)
    y = np.arange(240) % 3
    x = rng.normal(size=(240, 6, 6, 1)).astype("float32")
    x[np.arange(240), y, y, 0] += 4.0
    return Dataset("dots", (x[:160], y[:160]), (x[160:200], y[160:200]), (x[200:], y[200:]), x[:48], 3)


@pytest.fixture
def model():
    keras.utils.set_random_seed(0)
    return small()


@pytest.fixture
def context(data, tmp_path):
    return Context("net", data, 0, tmp_path, tmp_path)


@pytest.fixture(scope="module")
def baseline(data, tmp_path_factory):
    """A trained net on disk, as a teacher and a measure."""
    keras.utils.set_random_seed(0)
    folder = tmp_path_factory.mktemp("baseline")
    trained = Train(epochs=4, batch_size=16, optimizer=Optimizer(learning_rate=0.01)).run(
        FloatModel(small()), Context("net", data, 0, folder, folder)
    )
    trained.model.save(folder / "model.keras")
    reached = float(np.mean(trained.model.predict(data.test[0], verbose=0).argmax(axis=1) == data.test[1]))
    return Baseline({"metrics": {"accuracy": reached}}, folder / "model.keras")


def taught(data, folder, baseline, **changes):
    return Context("net", data, 0, folder, folder, baseline=baseline, **changes)


def kernels(model) -> list[np.ndarray]:
    multiplying = keras.layers.Conv2D | keras.layers.Dense
    return [layer.get_weights()[0] for layer in model.layers if isinstance(layer, multiplying)]


def test_train_learns_and_keeps_the_curves(model, context, data):
    stage = Train(epochs=4, batch_size=16, optimizer=Optimizer(learning_rate=0.01))
    after = stage.run(FloatModel(model), context)
    history = context.record.history
    assert {name: len(values) for name, values in history.items()} == dict.fromkeys(
        ("accuracy", "loss", "val_accuracy", "val_loss"), 4
    )
    assert history["loss"][-1] < history["loss"][0]
    assert np.mean(after.model.predict(data.test[0], verbose=0).argmax(axis=1) == data.test[1]) > 0.8


@pytest.mark.slow
def test_patience_stops_and_goes_back_to_the_best(model, context, data):
    stage = Train(epochs=50, batch_size=16, optimizer=Optimizer(learning_rate=0.3, decay="none"), patience=1)
    after = stage.run(FloatModel(model), context).model
    history = context.record.history["val_loss"]
    assert len(history) < 50
    x, y = data.validation
    logits = after.predict(x, verbose=0).astype("float64")
    naive = -np.mean(
        logits[np.arange(len(y)), y] - np.log(np.exp(logits - logits.max(1, keepdims=True)).sum(1)) - logits.max(1)
    )
    assert naive == pytest.approx(min(history), rel=1e-3)


@pytest.mark.sweep(3)
@pytest.mark.parametrize(
    ("fields", "check"),
    [
        ({"ratio": 0.5}, lambda before, after: after["conv1"] == 4 and after["conv2"] == 6),
        ({"ratio": 0.5, "ignore": ("conv1",)}, lambda before, after: after["conv1"] == 8 and after["conv2"] == 6),
        ({"ratio": 0.4, "round_to": 4}, lambda before, after: after["conv1"] % 4 == 0 and after["conv2"] % 4 == 0),
        ({"target": Target(macs=0.5), "criterion": "taylor"}, lambda before, after: after["conv1"] < 8),
        ({"ratio": 0.5, "scope": "global"}, lambda before, after: after["conv1"] + after["conv2"] < 20),
        (
            {"schedule": {"polynomial_decay": {"final_sparsity": 0.5}}, "epochs": 1},
            lambda before, after: after["conv1"] == 4 and after["conv2"] == 6,
        ),
    ],
)
def test_prune_filters(model, context, fields, check):
    stage = PruneFilters(**{"epochs": 0, **fields})
    after = stage.run(FloatModel(model), context).model
    channels = {layer.name: layer.filters for layer in after.layers if isinstance(layer, keras.layers.Conv2D)}
    assert check(None, channels), channels
    assert (context.folder / "plan.json").is_file()
    assert context.record.details["plan"]


def test_a_target_is_met(model, context):
    after = PruneFilters(target=Target(params=0.4), epochs=0).run(FloatModel(model), context).model
    assert after.count_params() <= 0.4 * small().count_params()


def test_pruning_nothing_warns_and_notes_it(model, context):
    with pytest.warns(NoEffectWarning, match="removes no channel"), noting(context.record):
        PruneFilters(ratio=0.0, epochs=0).run(FloatModel(model), context)
    assert any("removes no channel" in note for note in context.record.notes)


def test_setting_no_weight_to_zero_warns_and_notes_it(model, context):
    with pytest.warns(NoEffectWarning), noting(context.record):
        PruneWeights(sparsity=0.0, epochs=0).run(FloatModel(model), context)
    assert len(context.record.notes) == 1


@pytest.mark.sweep(1)
@pytest.mark.parametrize(("epochs", "teaching"), [(0, None), (2, None), (2, Teaching())])
def test_prune_weights_has_exact_counts(model, data, tmp_path, baseline, epochs, teaching):
    context = taught(data, tmp_path, baseline)
    after = PruneWeights(sparsity=0.6, epochs=epochs, distill=teaching).run(FloatModel(model), context).model
    for kernel in kernels(after):
        assert np.count_nonzero(kernel == 0) == round(0.6 * kernel.size)
    assert {row["sparsity"] for row in context.record.details["weights"]} == {
        round(0.6 * kernel.size) / kernel.size for kernel in kernels(after)
    }
    assert any("bias" in row["layer"] for row in context.record.skipped)


def test_prune_weights_of_some_layers(model, context):
    after = PruneWeights(sparsity=0.5, epochs=0, layers="conv2").run(FloatModel(model), context).model
    assert [bool((kernel == 0).any()) for kernel in kernels(after)] == [False, True, False]


@pytest.mark.sweep(1)
@pytest.mark.parametrize(
    "stage",
    [
        Train(epochs=1),
        Distill(epochs=1),
        PruneFilters(ratio=0.25, epochs=1, criterion="l2"),
        PruneFilters(ratio=0.25, epochs=1, criterion="l2", distill=Teaching()),
        PruneFilters(schedule={"constant": {"target_sparsity": 0.25}}, epochs=1, criterion="l2"),
    ],
)
def test_later_stages_keep_the_zeros(model, data, tmp_path, baseline, stage):
    sparse = PruneWeights(sparsity=0.6, epochs=0).run(FloatModel(model), taught(data, tmp_path, baseline)).model
    context = taught(data, tmp_path, baseline, holds_zeros=True)
    cut = PruneFilters(ratio=0.25, epochs=0, criterion="l2").run(FloatModel(sparse), context).model
    before = kernels(cut if isinstance(stage, PruneFilters) else sparse)
    after = kernels(stage.run(FloatModel(sparse), context).model)
    for old, new in zip(before, after, strict=True):
        assert (new[old == 0] == 0).all()
        assert not np.array_equal(old, new)


def test_the_zeros_are_lost_without_holding_them(model, context):
    """The control of the test above."""
    sparse = PruneWeights(sparsity=0.6, epochs=0).run(FloatModel(model), context)
    after = Train(epochs=1).run(sparse, context).model
    assert sum(np.count_nonzero(kernel == 0) for kernel in kernels(after)) == 0


@pytest.mark.sweep(1)
@pytest.mark.parametrize("epochs", [0, 1])
def test_quantize_gives_a_quantized_model_that_keeps_zeros(model, data, tmp_path, baseline, epochs):
    context = taught(data, tmp_path, baseline, holds_zeros=True)
    sparse = PruneWeights(sparsity=0.6, epochs=0).run(FloatModel(model), context).model
    zeros = [variable.numpy() == 0 for variable in sparse.trainable_variables if "kernel" in variable.path]
    after = Quantize(epochs=epochs).run(FloatModel(sparse), context)
    assert isinstance(after, QuantizedModel)
    assert is_quantized(after.model)
    held = [variable.numpy() for variable in after.model.trainable_variables if "kernel" in variable.path]
    assert len(held) == len(zeros)
    for kernel, zero in zip(held, zeros, strict=True):
        assert (kernel[zero] == 0).all()


@pytest.mark.slow
def test_quantize_takes_an_observer_and_freezes_ranges(model, context):
    x, updates = context.data.train[0], 8 // 4
    for fields, most in (({}, updates), ({"freeze_ranges_after": 1}, 1), ({"observer": "mse"}, 0)):
        made = Quantize(epochs=1, batch_size=-(-len(x) // updates), **fields).run(FloatModel(model), context).model
        start = Quantize(observer=fields.get("observer", "minmax")).run(FloatModel(model), context).model
        ranges = [[one.range() for one in net.layers if isinstance(one, FakeQuant)] for net in (start, made)]
        assert (ranges[0] != ranges[1]) == (most > 0), fields
        assert next(one.left for one in made.layers if isinstance(one, FakeQuant)) == (0 if most == 1 else np.inf)
    clipped = Quantize(observer={"percentile": {"fraction": 0.9}}).run(FloatModel(model), context).model
    assert clipped.layers[1].range()[1] < start.layers[1].range()[1]
    with pytest.raises(ValueError, match="freeze_ranges_after would do nothing"):
        Quantize(freeze_ranges_after=3)
    with pytest.raises(ValueError, match="Did you mean 'minmax'"):
        Quantize(observer="minmx")


def test_quantize_holds_a_budget_of_accuracy(model, context):
    stage = Quantize(scheme="int4", max_accuracy_drop=0.5)
    assert isinstance(stage.run(FloatModel(model), context), QuantizedModel)
    assert "no layer needs other bits" in context.record.notes[-1]
    with pytest.raises(ValueError, match="max_accuracy_drop"):
        Quantize(max_accuracy_drop=1.0)


def test_quantize_improves(model, context):
    plain, better = (
        Quantize(scheme="int4", improve=improve).run(FloatModel(model), context).model
        for improve in (None, "adaptive_rounding")
    )
    x = context.data.validation[0]
    away = [np.mean((np.asarray(net(x)) - np.asarray(model(x))) ** 2) for net in (plain, better)]
    assert away[1] < away[0]
    with pytest.raises(KpipeError, match="takes clusters apart"):
        Quantize(improve="adaptive_rounding").run(FloatModel(model), replace(context, holds_clusters=True))
    with pytest.raises(ValueError, match="unknown improvement 'adaround'"):
        Quantize(improve="adaround")


def test_what_quantize_leaves_in_float_is_in_the_record(data, tmp_path, baseline):
    context = taught(data, tmp_path, baseline)
    x = keras.Input(data.train[0].shape[1:])
    y = keras.layers.Dense(4, name="hidden")(keras.layers.ELU(name="elu")(keras.layers.Flatten()(x)))
    model = FloatModel(keras.Model(x, keras.layers.Dense(3, name="logits")(y)))
    Quantize(exclude=("logits",)).run(model, context)
    assert {(row["layer"], row["reason"]) for row in context.record.skipped} == {
        ("elu", "it computes in float: no integer kernel is known for it"),
        ("logits", "it computes in float: it was left out"),
    }
    with pytest.raises(KpipeError, match="No integer kernels for 'elu'"):
        Quantize(islands="refuse").run(model, context)


@pytest.mark.sweep(1)
@pytest.mark.parametrize("epochs", [0, 1])
def test_quantize_takes_a_scheme_and_bits_of_layers(model, context, epochs):
    for scheme, bits, precision in (
        ("int8_dynamic", None, "int8_dynamic"),
        ("w4a8", {"logits": 8}, "w4a8"),
        ("int8", {"logits": 4}, "w4a8"),
    ):
        stage = Quantize(scheme=scheme, bits=bits, epochs=epochs)
        after = stage.run(FloatModel(model), context)
        assert isinstance(after, QuantizedModel)
        assert scheme_of(after.model) == stage.precision == precision
    with pytest.raises(ValueError, match="int4 leaves activations in float: there are no ranges, and observer"):
        Quantize(scheme="int4", observer="minmax")
    with pytest.raises(ValueError, match="beside float16 weights can only stay in float"):
        Quantize(scheme="float16", bits={"logits": 8})


def test_weights_that_keep_more_bits_are_in_the_record(data, tmp_path, baseline):
    context = taught(data, tmp_path, baseline)
    x = keras.Input(data.train[0].shape[1:])
    tall = keras.layers.Reshape((*data.train[0].shape[1:3], -1))(x)
    y = keras.layers.Flatten()(keras.layers.Conv2DTranspose(2, 2, name="up")(tall))
    Quantize(scheme="w4a8").run(FloatModel(keras.Model(x, keras.layers.Dense(3)(y))), context)
    (row,) = context.record.skipped
    assert row["layer"] == "up" and row["reason"].startswith("its weights have 8 bits: no runtime has")


@pytest.mark.slow
def test_an_export_in_floats_or_whole_numbers(model, context):
    with pytest.raises(ValueError, match="onnx files have float32 inputs and outputs always; leave io out"):
        Export(formats=("onnx",), io="int8")
    for io, dtype in ((None, "int8"), ("float32", "float32")):
        quantized = Quantize().run(FloatModel(model), context)
        Export(formats=("tflite",), io=io).run(quantized, context)
        with load_runtime(context.folder / context.record.files[-1]["path"]) as runtime:
            assert {port.dtype for port in (*runtime.inputs, *runtime.outputs)} == {dtype}


def test_an_export_rounded_by_the_converter(model, context):
    x = keras.Input(context.data.train[0].shape[1:])
    curved = keras.layers.ELU(name="curve")(keras.layers.Dense(4)(keras.layers.Flatten()(x)))
    given = FloatModel(keras.Model(x, keras.layers.Dense(3)(curved), name="curved"))
    stage = Export(precision="int16x8", method="converter", io="int16")
    with pytest.warns(UserWarning, match="not all whole numbers"), noting(context.record):
        assert stage.run(given, context) is given
    (file,) = context.record.files
    assert (file["precision"], file["agreement"]["source"]) == ("int16x8", "data")
    assert file["agreement"]["samples"] == len(context.data.calibration)
    assert file["agreement"]["signal_to_noise_db"] > 20 and 0 <= file["accuracy"] <= 1
    (note,) = context.record.notes
    assert "ELU computes in float" in note and "curve" in note
    for wrong, why in (
        ({"precision": "int16x8"}, "int16x8 is written by method='converter' alone"),
        ({"method": "converter"}, "writes int8 or int16x8; received the precision None"),
        ({"precision": "float16", "method": "converter"}, "writes int8 or int16x8; received the precision 'float16'"),
        ({"precision": "int8", "method": "converter", "formats": ("tflite", "onnx")}, "for onnx files call kpipe.quan"),
        ({"precision": "int16x8", "method": "converter", "c_array": True}, "c_array is not for int16x8"),
        ({"precision": "int16x8", "method": "converter", "io": "int8"}, "expected 'float32' or 'int16'"),
        ({"io": "int16"}, "expected 'float32' or 'int8'"),
        ({"method": "convertor"}, "Did you mean 'converter'"),
    ):
        with pytest.raises(ValueError, match=why):
            Export(**wrong)
    with pytest.raises(ExportError, match="is quantized: its file is int8, and method='converter'"):
        stage.run(Quantize().run(FloatModel(model), context), context)


@pytest.mark.parametrize(
    "stage",
    [
        Distill(epochs=1),
        PruneFilters(ratio=0.5, epochs=1, distill=Teaching()),
        PruneWeights(sparsity=0.5, epochs=1, distill=Teaching()),
        Quantize(epochs=1, distill=Teaching()),
    ],
    ids=lambda stage: stage.stage,
)
def test_teaching_needs_a_teacher(model, context, stage):
    with pytest.raises(KpipeError, match="distill has no teacher"):
        stage.run(FloatModel(model), context)


def test_distill_into_another_student(model, data, tmp_path, baseline):
    (tmp_path / "students.py").write_text(
        "import keras\n\ndef tiny(input_shape, classes):\n    return keras.Sequential([keras.Input(input_shape), "
        "keras.layers.Flatten(), keras.layers.Dense(classes)])\n"
    )
    context = taught(data, tmp_path, baseline)
    stage = Distill(student=ModelSource(factory="students:tiny"), epochs=2, batch_size=16)
    after = stage.run(FloatModel(model), context).model
    assert after.count_params() == 36 * 3 + 3
    assert len(context.record.history["val_accuracy"]) == 2


def test_export_measures_its_files_and_gives_the_model_on(model, context):
    given = FloatModel(model)
    assert Export(formats=("tflite", "onnx"), name="out").run(given, context) is given
    files = context.record.files
    assert [file["path"] for file in files] == ["out.tflite", "out.onnx"]
    x, y = context.data.test
    expected = float(np.mean(model.predict(x, verbose=0).argmax(axis=1) == y))
    for file in files:
        assert file["bytes"] == (context.folder / file["path"]).stat().st_size
        assert file["accuracy"] == pytest.approx(expected)


def test_export_tells_the_files_what_they_are_made_of(model, data, tmp_path):
    known = replace(data, labels=("left", "middle", "right"), scale=0.25)
    context = Context("net", known, 0, tmp_path, tmp_path, key="k" * 64, steps=("01-train", "02-export"))
    for stage, labels in (
        (Export(metadata={"author": "one"}), ["left", "middle", "right"]),
        (Export(labels=("a", "b", "c")), ["a", "b", "c"]),
    ):
        stage.run(FloatModel(model), context)
        said = read_metadata(tmp_path / "net.tflite")
        assert said["labels"] == labels
        assert (said["recipe"], said["recipe_key"], said["stages"]) == ("net", "k" * 64, ["01-train", "02-export"])
        assert said["normalisation"] == [{"input": "image", "by": "caller", "scale": 0.25, "offset": 0.0}]
        assert context.record.files[-1]["beside"] == ["net.tflite.json"]
        assert json.loads((tmp_path / "net.tflite.json").read_text())["labels"] == labels
    assert said["accuracy"] == context.record.files[-1]["accuracy"]
    Export().run(FloatModel(model), replace(context, data=replace(data, labels=("only", "two"))))
    assert "labels" not in read_metadata(tmp_path / "net.tflite")  # of another number of classes: not this model's
    with pytest.raises(ExportError, match="2 labels"):
        Export(labels=("only", "two")).run(FloatModel(model), context)


def test_export_writes_an_array_beside_the_litert_file_alone(model, context):
    Export(formats=("onnx", "tflite"), c_array=True).run(FloatModel(model), context)
    names = [[file["path"], *file["beside"]] for file in context.record.files]
    assert names[0][1:] == [f"{names[0][0]}.json"]
    stem = names[1][0].removesuffix(".tflite")
    assert names[1][1:] == [f"{stem}.tflite.json", f"{stem}.cc", f"{stem}.h"]
    assert {path.name for path in context.folder.iterdir()} >= {name for each in names for name in each}
    with pytest.raises(ValidationError, match="expected tflite among the formats"):
        Export(formats=("onnx",), c_array=True)
    with pytest.raises(ValidationError, match="precision, which kpipe finds itself"):
        Export(metadata={"precision": "int8"})


def test_export_refuses_a_file_that_lost_too_much(model, data, tmp_path, baseline):
    context = taught(data, tmp_path, baseline)  # the model has not been trained, the baseline has
    with pytest.raises(ExportError, match=r"net\.tflite has accuracy 0\.\d+ .* max_accuracy_drop allows 0\.1"):
        Export(max_accuracy_drop=0.1).run(FloatModel(model), context)
    trained = FloatModel(baseline.load())
    assert Export(max_accuracy_drop=0.1).run(trained, taught(data, tmp_path, baseline)) is trained


@pytest.mark.slow
def test_export_refuses_to_judge_an_accuracy_that_there_is_not(model, data, tmp_path, baseline):
    stage = Export(max_accuracy_drop=0.1)
    with pytest.raises(KpipeError, match="compares with a baseline, and there is none"):
        stage.run(FloatModel(model), Context("net", data, 0, tmp_path, tmp_path))
    unmeasured = Baseline({"metrics": {"accuracy": None}}, baseline.path)
    with pytest.raises(KpipeError, match=r"the labels are no classes to the loss\. Leave it out"):
        stage.run(FloatModel(model), taught(data, tmp_path, unmeasured))
    regression = replace(taught(data, tmp_path, baseline), loss="mean_squared_error")
    with pytest.raises(KpipeError, match=r"the labels are no classes to the loss\. Leave it out"):
        stage.run(FloatModel(model), regression)
    Export().run(FloatModel(model), regression)  # the control: without a limit there is nothing to judge
    assert regression.record.files[0]["accuracy"] is None


@pytest.mark.slow
def test_float16_is_half_as_large(model, context):
    Export(name="full").run(FloatModel(model), context)
    Export(name="half", precision="float16").run(FloatModel(model), context)
    full, half = context.record.files
    assert half["precision"] == "float16"
    assert half["bytes"] < full["bytes"]


@pytest.mark.slow
def test_a_training_on_varied_images_follows_its_seed(data, tmp_path, baseline):
    def trained(stage, teach=False, **changes):
        keras.utils.set_random_seed(0)
        one = taught(data, tmp_path, baseline) if teach else Context("net", data, 0, tmp_path, tmp_path)
        return kernels(stage(epochs=2, batch_size=16, **changes).run(FloatModel(small()), one).model)

    varied = {"augment": Augmentation(flip=True, shift=1)}
    plain, first, again = trained(Train), trained(Train, **varied), trained(Train, **varied)
    assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))
    assert not any(np.array_equal(a, b) for a, b in zip(first, plain, strict=True))
    teaching = {"teach": True, "ratio": 0.25, "distill": Teaching()}
    one, other = trained(PruneFilters, **teaching), trained(PruneFilters, **teaching, **varied)
    assert not any(np.array_equal(a, b) for a, b in zip(one, other, strict=True))


def test_momentum_is_that_of_nesterov(context):
    made = make_optimizer(Optimizer(name="sgd", momentum=0.9), steps=10)
    assert made.momentum == 0.9 and made.nesterov
    assert not make_optimizer(Optimizer(name="sgd"), steps=10).nesterov
    assert make_optimizer(Optimizer(name="rmsprop", momentum=0.5), steps=10).momentum == 0.5


def test_the_rate_falls_to_zero_over_the_training(context):
    stage = Train(epochs=3, batch_size=50)
    steps = steps_in(stage, context)
    assert steps == 3 * 4  # 160 samples in batches of 50
    optimizer = make_optimizer(Optimizer(learning_rate=0.5), steps)
    schedule = optimizer._learning_rate
    assert [float(schedule(step)) for step in (0, steps // 2, steps)] == pytest.approx([0.5, 0.25, 0.0])


def test_measuring_a_quantized_model_counts_what_is_written(model, context):

    quantized = Quantize().run(FloatModel(model), context).model
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        counts = measure(quantized).to_dict()
    plain = measure(small())
    assert counts["macs"] == plain.macs
    assert counts["params"] == plain.params - 4 * 8  # the batch norm of 8 channels goes into the convolution before it


def test_a_mixed_model_is_quantized_and_written_in_float32_and_the_record_says_so(context):
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy("mixed_float16")
    try:
        mixed = small()
        with (
            pytest.warns(UserWarning, match="computes in float32, and 'small' in mixed_float16"),
            noting(context.record),
        ):
            Export(name="full").run(FloatModel(mixed), context)
            quantized = Quantize(epochs=1, batch_size=16).run(FloatModel(mixed), context)
            Export(name="int8").run(quantized, context)
    finally:
        keras.config.set_dtype_policy(before)
    assert [file["precision"] for file in context.record.files] == ["float32", "int8"]
    said = [note for note in context.record.notes if "in mixed_float16" in note]
    assert [note.split(" computes ")[0] for note in said] == ["The file", "The quantized model"]
    assert {layer.compute_dtype for layer in quantized.model._flatten_layers() if layer.weights} == {"float32"}
