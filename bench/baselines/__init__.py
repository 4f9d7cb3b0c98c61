"""What the package is compared with; the tests compare results with the same code."""
