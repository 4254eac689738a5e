import keras
import numpy as np
import pytest

from kpipe.unstructured.slots import reset_slots, slots_of

O = keras.optimizers  # noqa: E741
OPTIMIZERS = {
    "SGD": {"momentum": 0.9},
    "RMSprop": {"momentum": 0.9, "centered": True},
    "Adam": {"amsgrad": True},
    "AdamW": {},
    "Adadelta": {},
    "Adagrad": {},
    "Adamax": {},
    "Adafactor": {},
    "Nadam": {},
    "Ftrl": {},
    "Lion": {},
    "Lamb": {},
    "Muon": {},
    "ScheduleFreeAdamW": {},
}


def used(optimizer):
    """Update two kernels once."""
    kernels = [keras.Variable(np.ones((3, 4), "float32")), keras.Variable(np.ones((4, 2), "float32"))]
    optimizer.apply([np.full(kernel.shape, 0.5, "float32") for kernel in kernels], kernels)
    return kernels


@pytest.mark.parametrize("wrapped", [False, True])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_everything_that_an_optimizer_keeps_of_a_variable_is_found(name, wrapped):
    if getattr(O, name, None) is None:
        pytest.skip("this Keras has no such optimizer")
    inner = getattr(O, name)(**OPTIMIZERS[name], use_ema=True, gradient_accumulation_steps=2)
    _, kernel = used(O.LossScaleOptimizer(inner) if wrapped else inner)
    shaped = [one for one in inner.variables if tuple(one.shape) == (4, 2)]
    others = ("_average", "_gradient_accumulator")  # of the weights, and of gradients that wait
    own = [one for one in shaped if not one.name.endswith(others)]
    found = [slot for slot, _ in slots_of(O.LossScaleOptimizer(inner) if wrapped else inner, kernel)]
    assert found and {id(slot) for slot in found} == {id(one) for one in own} and len(shaped) == len(own) + 2


def test_only_the_named_entries_are_forgotten():
    adam = O.Adam()
    first, second = used(adam)
    places = np.zeros((3, 4), bool)
    places[1] = True
    reset_slots(adam, first, places)
    for slot, _ in slots_of(adam, first):
        assert not slot.numpy()[places].any() and slot.numpy()[~places].all()
    assert all(slot.numpy().all() for slot, _ in slots_of(adam, second))


def test_what_began_above_zero_begins_there_again():
    adagrad = O.Adagrad(initial_accumulator_value=0.25)
    first, _ = used(adagrad)
    reset_slots(adagrad, first, np.ones((3, 4), bool))
    ((slot, _),) = slots_of(adagrad, first)
    assert (slot.numpy() == 0.25).all()


def test_of_several_optimizers_it_is_the_one_that_updates_the_variable():
    if getattr(O, "MultiOptimizer", None) is None:
        pytest.skip("this Keras has no such optimizer")
    by_path = O.OptimizerMap(O.SGD(momentum=0.9), {".*second": O.Adam()})
    several = O.MultiOptimizer(by_path)
    kernels = [keras.Variable(np.ones(3, "float32"), name=name) for name in ("first", "second")]
    several.apply([np.ones(3, "float32")] * 2, kernels)
    assert [len(slots_of(several, kernel)) for kernel in kernels] == [1, 2]


def test_a_stranger_and_an_optimizer_that_is_not_built_have_none():
    adam = O.Adam()
    stranger = keras.Variable(np.ones(3))
    assert slots_of(adam, stranger) == []
    used(adam)
    assert slots_of(adam, stranger) == []
