"""The operator's side: opens rounds, merges updates, and operates runs. Never imports torch, tasks or the client."""
