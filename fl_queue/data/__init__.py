"""The MNIST excerpt that ships with the package; README.md says where it comes from."""
