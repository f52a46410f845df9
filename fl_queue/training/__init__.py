"""The loops of torch that train and evaluate a model, and what makes them repeat bit by bit."""
