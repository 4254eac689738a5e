"""What is known of attention: its projections are `EinsumDense` layers inside, its scores are scaled."""

from keras import layers as L

from kpipe.layers.rule import register_weights

register_weights(L.MultiHeadAttention, L.GroupQueryAttention, roles={}, whole=True)
register_weights(L.Attention, roles={"scale": "gamma", "concat_score_weight": "gamma"})
register_weights(L.AdditiveAttention, roles={"scale": "gamma"})
