"""Measured results of many runs beside the published numbers, in the layout of the paper's Tables 1 to 12."""
