"""Forms in which people keep images and labels: each reader describes a folder in the same words."""
