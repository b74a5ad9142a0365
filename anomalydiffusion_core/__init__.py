"""AnomalyDiffusion in plain PyTorch: the whole method, without ComfyUI."""
