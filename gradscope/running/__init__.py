"""Attaching to the models and optimizers of a script that knows nothing of it."""
