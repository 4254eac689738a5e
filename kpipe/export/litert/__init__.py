"""LiteRT (.tflite): written by TensorFlow's converter, run by ai-edge-litert."""

from kpipe.export.litert import compiled, contents, convert

__all__ = ["compiled", "contents", "convert"]
