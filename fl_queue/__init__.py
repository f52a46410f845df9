"""Federated learning as a message-queue pipeline over Redis."""

__version__ = "0.1.0"
