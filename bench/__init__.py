"""Benchmarks, one file per subject, and the oracles that are also their baselines."""
