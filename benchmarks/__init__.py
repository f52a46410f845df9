"""What fl-queue costs, measured beside what it has to cost; ``docs/benchmarks.md`` has the figures."""
