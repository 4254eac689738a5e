"""What is known of recurrent layers: their cells hold the weights."""

import sys

from keras import layers as L

from kpipe.layers.rule import Role, register_weights

# Keras gives the cell no public name. Not by an instance: that would set up TensorFlow's devices at import.
ConvLSTMCell = vars(sys.modules[L.ConvLSTM1D.__mro__[1].__module__])["ConvLSTMCell"]

CELL: dict[str, Role] = {"kernel": "kernel", "recurrent_kernel": "recurrent_kernel", "bias": "bias"}

register_weights(L.SimpleRNNCell, L.LSTMCell, L.GRUCell, ConvLSTMCell, roles=CELL)
register_weights(L.SimpleRNN, L.LSTM, L.GRU, L.ConvLSTM1D, L.ConvLSTM2D, L.ConvLSTM3D, roles={}, whole=True)
