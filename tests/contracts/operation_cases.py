"""A small model round every operation of `keras.ops` that has a rule."""

CASES = {}
