"""``fl-queue doctor``: check this machine and both Redis servers before a federation."""

from fl_queue.reporting.doctor.examination import examine
from fl_queue.reporting.doctor.finding import Finding, raise_on_failure

__all__ = ["Finding", "examine", "raise_on_failure"]
