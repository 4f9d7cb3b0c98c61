"""Packed data sets: one file of class-sorted uint8 images."""
