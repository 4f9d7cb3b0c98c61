"""Benchmarks: one file measures a subject, and makes its table and its plots."""
