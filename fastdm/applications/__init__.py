"""Whole jobs, one behind each command."""
