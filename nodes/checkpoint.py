"""Load LDM Checkpoint: the base model by the name of its file: demo prior, text2img-large, Stable Diffusion 1.5."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from .host import checkpoints
from .host.versions import schema
from .sockets import CATEGORY

NORMAL = "a photo"


class LoadLDMCheckpoint(io.ComfyNode):
    """A file of the original latent diffusion layout, or a stock checkpoint, as MODEL, VAE and two conditionings."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="AnomalyDiffusionLoadLDMCheckpoint",
            display_name="Load LDM Checkpoint",
            category=f"{CATEGORY}/loaders",
            search_aliases="model loader, base model, stable diffusion, demo prior, anomaly model".split(", "),
            description=(
                "Loads the base model with the conditionings that the other nodes need: the demo prior "
                "and text2img-large, the paper's base model, which the stock loader does not read, or a Stable "
                "Diffusion 1.5 checkpoint. One choice switches a workflow."
            ),
            inputs=[
                io.Combo.Input(
                    "checkpoint",
                    options=checkpoints.checkpoint_files(),
                    tooltip=(
                        "The demo prior of the extension, a file in models/anomalydiffusion_checkpoints such as "
                        "text2img-large (.ckpt or .safetensors), or Stable Diffusion 1.5 in models/checkpoints."
                    ),
                ),
                io.String.Input(
                    "normal_caption",
                    default=NORMAL,
                    optional=True,
                    tooltip="With a text encoder: a prompt that names a normal part, such as a photo of a metal nut.",
                ),
            ],
            outputs=[
                io.Model.Output("model", display_name="model", tooltip="An ordinary MODEL for any sampler node."),
                io.Vae.Output("vae", display_name="vae", tooltip="An ordinary VAE."),
                io.Conditioning.Output(
                    "empty",
                    display_name="empty caption",
                    tooltip="The empty caption: the negative for a cfg above 1.",
                ),
                io.Conditioning.Output(
                    "normal",
                    display_name="normal caption",
                    tooltip="The caption of a normal image: where training starts, and the control of the sampler.",
                ),
                io.Clip.Output(
                    "clip",
                    display_name="clip",
                    tooltip="The text encoder of Stable Diffusion or text2img-large. The demo prior has none.",
                ),
            ],
        )

    @classmethod
    def fingerprint_inputs(cls, checkpoint: str | None = None, **_: object) -> str:
        return checkpoints.checkpoint_fingerprint(checkpoint)

    @classmethod
    def execute(cls, checkpoint: str, normal_caption: str = NORMAL) -> io.NodeOutput:
        base = checkpoints.load_base_model(checkpoint, normal_caption)
        return io.NodeOutput(base.model, base.vae, base.empty, base.normal, base.clip)


class EncodeLDMCaption(io.ComfyNode):
    """Words of a checkpoint's own table as conditioning, or a prompt through the text encoder."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="AnomalyDiffusionEncodeLDMCaption",
            display_name="Encode LDM Caption",
            category=f"{CATEGORY}/loaders",
            search_aliases="prompt, text encode, caption".split(", "),
            description=(
                "Turns a caption into conditioning: words that the demo prior knows, or a prompt when a CLIP is "
                "connected. A coarse word is where training starts; a caption can also be sampled."
            ),
            inputs=[
                io.Combo.Input(
                    "checkpoint",
                    options=checkpoints.checkpoint_files(),
                    tooltip="The file that Load LDM Checkpoint loads. Not used when a CLIP is connected.",
                ),
                io.String.Input(
                    "caption",
                    default="",
                    tooltip=(
                        "Words separated by commas, for example mask, or leather, brown, dent. Several words of one "
                        "kind, such as stain, scratch, give their mean. An unknown word lists all words."
                    ),
                ),
                io.Clip.Input(
                    "clip",
                    optional=True,
                    tooltip="From Load LDM Checkpoint. With Stable Diffusion it encodes the caption.",
                ),
            ],
            outputs=[
                io.Conditioning.Output(
                    "conditioning", display_name="conditioning", tooltip="The conditioning of the words."
                ),
            ],
        )

    @classmethod
    def fingerprint_inputs(cls, checkpoint: str | None = None, **_: object) -> str:
        return checkpoints.checkpoint_fingerprint(checkpoint)

    @classmethod
    def execute(cls, checkpoint: str, caption: str, clip: Any = None) -> io.NodeOutput:
        return io.NodeOutput(checkpoints.encode_caption(checkpoint, caption, clip))
