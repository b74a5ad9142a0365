"""Numbers: detectors and classifiers on real defects, quality of generated images, metrics, and the paper's tables."""
