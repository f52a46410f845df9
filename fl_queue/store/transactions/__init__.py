"""Transactions that change several keys of the control server at once, with the jobs they publish."""
