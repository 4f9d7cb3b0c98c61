"""Data sets as class-sorted uint8 pools."""
