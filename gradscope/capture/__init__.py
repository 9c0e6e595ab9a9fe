"""Hooks, windows, re-use of modules, and which row is which sample."""
