"""Partition of data over clients, and the MNIST excerpt of the package (source: README.md)."""
