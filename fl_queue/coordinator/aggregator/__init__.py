"""The job of the aggregator: takes updates in, judges them, merges them, builds the next version."""
