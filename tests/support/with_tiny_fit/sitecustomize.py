"""Loaded by Python at its start where the folder is in PYTHONPATH: registers the fit of the tests."""

from fl_queue.config.analysis_catalog import ANALYSES
from tests.support import tiny_fit

ANALYSES["tiny-fit"] = tiny_fit.entry()
