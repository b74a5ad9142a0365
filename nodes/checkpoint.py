"""Load LDM Checkpoint: the demo prior, and whatever else has its file layout."""

from __future__ import annotations

from comfy_api.latest import io

from . import host, host_models
from .sockets import CATEGORY


class LoadLDMCheckpoint(io.ComfyNode):
    """A file of the original latent diffusion layout as MODEL, VAE and three conditionings."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="AnomalyDiffusionLoadLDMCheckpoint",
            display_name="Load LDM Checkpoint",
            category=f"{CATEGORY}/loaders",
            description=(
                "Loads a small latent diffusion model in the original LDM layout, such as the demo prior shipped with "
                "this extension, which the stock loader does not know. For Stable Diffusion use Load Checkpoint."
            ),
            inputs=[
                io.Combo.Input(
                    "checkpoint",
                    options=host.model_files(host.CHECKPOINTS),
                    tooltip="A file in models/anomalydiffusion_checkpoints, or the demo prior of the extension.",
                ),
                io.String.Input(
                    "caption",
                    default="",
                    optional=True,
                    tooltip=(
                        "Words of the checkpoint's own table, separated by commas, for the output caption; for "
                        "example mask, or leather, brown, dent. A wrong word lists all."
                    ),
                ),
            ],
            outputs=[
                io.Model.Output("model", display_name="model", tooltip="An ordinary MODEL for any sampler node."),
                io.Vae.Output("vae", display_name="vae", tooltip="An ordinary VAE."),
                io.Conditioning.Output(
                    "empty",
                    display_name="empty caption",
                    tooltip="The conditioning of no caption: the negative for a cfg above 1.",
                ),
                io.Conditioning.Output(
                    "normal",
                    display_name="normal caption",
                    tooltip="The conditioning of a good part: where training starts, and the control of the sampler.",
                ),
                io.Conditioning.Output(
                    "captioned",
                    display_name="caption",
                    tooltip=(
                        "The conditioning of the words in the input caption, for example where mask training starts."
                    ),
                ),
            ],
        )

    @classmethod
    def fingerprint_inputs(cls, checkpoint: str, caption: str = "") -> str:
        stat = host.model_file(host.CHECKPOINTS, checkpoint).stat()
        return f"{caption}|{checkpoint}|{stat.st_size}|{stat.st_mtime_ns}"

    @classmethod
    def execute(cls, checkpoint: str, caption: str = "") -> io.NodeOutput:
        loaded = host_models.load_ldm_checkpoint(host.model_file(host.CHECKPOINTS, checkpoint), caption)
        return io.NodeOutput(loaded.model, loaded.vae, loaded.empty, loaded.normal, loaded.caption)
