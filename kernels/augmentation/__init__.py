"""Differentiable Siamese augmentation: `dsa`."""
