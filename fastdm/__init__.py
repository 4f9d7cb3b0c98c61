"""Dataset condensation by distribution matching."""

__version__ = "0.1.0"
