"""The blocks of a network: `norm_relu_pool`, `norm_relu_pool_mean` and `conv_norm_relu_pool`."""
