"""Scores of single generated pairs against the real ones' own: what does not reach them is listed."""
