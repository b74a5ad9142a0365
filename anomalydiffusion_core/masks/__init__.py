"""Masks: sampling and clean-up, variation of real ones, procedural ones, placement and diversity."""
