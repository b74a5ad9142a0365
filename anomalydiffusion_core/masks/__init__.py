"""Masks that are not sampled from a model, and what is asked of every mask: clean-up, placement, diversity."""
