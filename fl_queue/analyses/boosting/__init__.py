"""Gradient boosting on histograms of integers: the same trees for any split of the rows over sites."""
