"""Counter-based random numbers: `uniform`, and `draw` for the images of every class."""
