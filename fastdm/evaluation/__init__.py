"""How good a set of images is: networks are trained on it and tested on real images."""
