"""Repeat experiments of published papers in small, on the built-in task: `rlhfctl reproduce`."""
