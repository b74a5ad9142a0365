"""How good, how varied and how new generated images are (AnomalyDiffusion, Table 1)."""
