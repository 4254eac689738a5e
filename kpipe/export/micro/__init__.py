"""TensorFlow Lite for Microcontrollers: LiteRT files as arrays, with their operators and memory."""

from kpipe.export.micro.c_array import CArray, array_content, array_paths, c_array

__all__ = ["CArray", "array_content", "array_paths", "c_array"]
