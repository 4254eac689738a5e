"""A small model round every layer on sequences that has a rule: embeddings, recurrent layers, attention."""

CASES = {}
