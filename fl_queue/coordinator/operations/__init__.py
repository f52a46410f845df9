"""Repair and operation of runs: healer, cancel, backup, enrolment, verification."""
