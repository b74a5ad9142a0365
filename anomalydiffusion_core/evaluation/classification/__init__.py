"""Which defect is it? A classifier trained on generated images, tested on real ones (AnomalyDiffusion, Table 4)."""
