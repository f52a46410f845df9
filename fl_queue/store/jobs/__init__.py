"""The jobs of RQ: published, looked at, and removed."""
