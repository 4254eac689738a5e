"""A text kept inside an ONNX file: an entry of its `metadata_props`, which no runtime reads."""

from kpipe.errors import ExportError

NAME = "kpipe"


def embed(content: bytes, words: str) -> bytes:
    """Put a text into an ONNX file under the key "kpipe"; one that was there before is replaced, all else stays."""
    import onnx

    proto = onnx.load_from_string(content)
    kept = {entry.key: entry.value for entry in proto.metadata_props}
    onnx.helper.set_model_props(proto, {**kept, NAME: words})
    return proto.SerializeToString()


def extract(content: bytes) -> str | None:
    """Give the text that `embed` put into an ONNX file; None where there is none.

    Raises:
        ExportError: When the file is broken.
    """
    import onnx

    if not content:
        raise ExportError("This is empty.")
    try:
        proto = onnx.load_from_string(content)
    except Exception as error:  # protobuf's decoder has errors of its own
        raise ExportError(f"This is a broken ONNX file: {type(error).__name__}: {error}") from error
    return next((entry.value for entry in proto.metadata_props if entry.key == NAME), None)
