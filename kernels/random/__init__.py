"""Random numbers by counter, and the draws of weights, augmentations and images that read them."""
