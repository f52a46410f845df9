"""Encodings of an update's tensors: int8, top-k, and the error feedback of those that lose something."""
