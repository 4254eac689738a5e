"""What tf_keras keeps in tables: the vocabularies of layers that look words or numbers up."""

from typing import Any


def lookup_of(layer: Any) -> Any:
    """Give the table of a layer: itself, or the one in a `TextVectorization`; None for other layers."""
    from tf_keras.src.layers.preprocessing.index_lookup import IndexLookup

    inner = getattr(layer, "_lookup_layer", layer)
    return inner if isinstance(inner, IndexLookup) else None


def lookup_config(layer: Any) -> dict[str, Any]:
    """Give the part of a layer's configuration that says what is in its table; nothing for other layers."""
    table = lookup_of(layer)
    if table is None:
        return {}
    words = list(table.get_vocabulary(include_special_tokens=False))
    if table.output_mode != "tf_idf":
        return {"vocabulary": words}
    special = len(table.get_vocabulary()) - len(words)
    return {"vocabulary": words, "idf_weights": table.idf_weights.numpy()[special : special + len(words)].tolist()}


def words_of(model: Any) -> list[str]:
    """List words that a model knows, and one that it does not."""
    tables = [lookup_of(layer) for layer in model._flatten_layers()]
    known = [table.get_vocabulary(include_special_tokens=False) for table in tables if table is not None]
    return [str(word) for words in known for word in words[:50]] + ["zyzzyva"]
