"""Runs started and compared from one machine: launch, sweep, baseline, trial of a task, demo."""
