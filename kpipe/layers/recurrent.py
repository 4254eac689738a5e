"""What is known of recurrent layers: their cells hold the weights."""

from keras import layers as L

from kpipe.layers.rule import Role, register_weights

ConvLSTMCell = type(L.ConvLSTM1D(1, 1).cell)  # Keras gives it no public name

CELL: dict[str, Role] = {"kernel": "kernel", "recurrent_kernel": "recurrent_kernel", "bias": "bias"}

register_weights(L.SimpleRNNCell, L.LSTMCell, L.GRUCell, ConvLSTMCell, roles=CELL)
register_weights(L.SimpleRNN, L.LSTM, L.GRU, L.ConvLSTM1D, L.ConvLSTM2D, L.ConvLSTM3D, roles={}, whole=True)
