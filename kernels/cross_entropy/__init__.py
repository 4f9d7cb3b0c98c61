"""The loss of a classifier: `cross_entropy`."""
