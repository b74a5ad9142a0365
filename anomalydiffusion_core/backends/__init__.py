"""Hosts of a latent diffusion model that need no ComfyUI; each implements `denoiser.Denoiser`."""
