"""The MNIST excerpt that ships with the package; its source is in README.md."""
