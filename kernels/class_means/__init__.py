"""The loss of distribution matching: `class_mean_difference`."""
