"""The additive sums of one micro-step, per parameter."""
