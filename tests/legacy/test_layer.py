"""Single layers, made from what is known of them."""

import keras
import pytest

from kpipe.errors import KpipeError
from kpipe.legacy.layer import make_layer
from tests.legacy import old_layers

ENTRY = {"name": "part/it", "class": "Lambda", "registered": "Lambda", "own": False}
POLICY = {"module": "keras.mixed_precision", "class_name": "Policy", "config": {"name": "mixed_float16"}}


def lambda_config(**changes):
    return {"name": "part/it", "function": "double", "arguments": {"times": 3.0}, "dtype": POLICY, **changes}


def test_a_lambda_keeps_its_arguments_and_its_type():
    with keras.saving.custom_object_scope({"double": old_layers.double}):
        layer = make_layer(ENTRY, lambda_config(), {})
    assert (layer.name, layer.arguments, layer.dtype_policy.name) == ("part_it", {"times": 3.0}, "mixed_float16")
    assert layer.function is old_layers.double


def test_the_function_given_for_a_lambdas_name_goes_before_its_own():
    with keras.saving.custom_object_scope({"double": old_layers.double, "part/it": old_layers.squash}):
        assert make_layer(ENTRY, lambda_config(), {}).function is old_layers.squash


def test_a_lambda_of_a_function_that_is_not_known_is_named():
    with pytest.raises(KpipeError, match=r"'part/it' is a Lambda of 'double'.*custom_objects={'part/it': function}"):
        make_layer(ENTRY, lambda_config(), {})
