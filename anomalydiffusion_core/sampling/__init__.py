"""Defects inside masks: blending, windows, re-weighting, the scene, retries, effect scores, and DDIM."""
