"""The demo prior: a miniature latent diffusion model trained from nothing on procedural images.

A stand-in for Stable Diffusion 1.5 that lets every node, test and table run on a laptop CPU. Nothing outside this
package and its loader depends on it.
"""
