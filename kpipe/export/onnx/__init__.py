"""ONNX (.onnx): written by tf2onnx, run by onnxruntime."""

from kpipe.export.onnx import contents, convert

__all__ = ["contents", "convert"]
