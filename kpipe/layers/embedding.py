"""What is known of layers that look channels up by token."""

from keras import layers as L

from kpipe.layers.axes import channels_on, positions
from kpipe.layers.call import ports
from kpipe.layers.channel_ids import ChannelIds, Ids
from kpipe.layers.rule import Rule, register_weights, rule

register_weights(L.Embedding, roles={"embeddings": "embedding"})
register_weights(L.ReversibleEmbedding, roles={"embeddings": "embedding", "reverse_embeddings": "kernel"})


@rule(L.Embedding, quantization="output")
def embedding(layer: L.Embedding, ids: ChannelIds, x: Ids) -> Rule:
    """Embeddings (tokens, channels): channels are cut, the vocabulary stays. Looking up multiplies nothing."""
    ids.freeze(x, f"{ids.path!r} looks them up as tokens")
    out = ids.fresh(layer.output_dim)
    return Rule(ids.spread(out, -1), axes={"embeddings": {1: out}}, config={"output_dim": out})


@rule(L.ReversibleEmbedding)
def reversible_embedding(layer: L.ReversibleEmbedding, ids: ChannelIds, x: Ids) -> Rule:
    """Embeddings (tokens, channels), and (channels, tokens) for the way back where it has weights of its own.

    On the way back the channels are summed over, and the tokens are the output.
    """
    if ports(layer, ids, (x,)).get("reverse"):
        channels, out = channels_on(ids, x, -1), ids.constant(f"they are the vocabulary of {ids.path!r}")
        multiplied = "embeddings" if layer.tie_weights else "reverse_embeddings"
        reuse = {multiplied: positions(ids.output_shapes[0], -1)}
    else:
        ids.freeze(x, f"{ids.path!r} looks them up as tokens")
        channels, reuse = ids.fresh(layer.output_dim), {}
        out = ids.spread(channels, -1)
    return Rule(
        out,
        axes={"embeddings": {1: channels}, "reverse_embeddings": {0: channels}},
        config={"output_dim": channels},
        reuse=reuse,
        summed={"embeddings": (1,), "reverse_embeddings": (0,)},
    )
