"""The data owner's side: train from the base version, keep the update in the outbox, send it; pause and approve. Never imports the coordinator."""
