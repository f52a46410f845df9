"""Flower clients as tasks, with the real flwr: `make test-flower`."""
