"""Versions of a model: written, shipped, cached on a machine, chosen and removed."""
