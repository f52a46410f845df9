"""The data owner's side: from the base model to the update in the outbox; what its owner may see and stop. Never imports the coordinator."""
