"""Figures derived from a window's sums: pure functions, one file each."""
