"""Files, processes, logs, safe JSON and other plumbing that knows nothing of federated learning."""
