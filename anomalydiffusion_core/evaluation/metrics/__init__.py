"""Detection metrics: every score is a threshold, counted in float64, and NaN wherever a metric is undefined.

Pixel metrics take one image after the other in bounded memory; masks are resized in one stated way.
"""
