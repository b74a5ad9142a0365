"""Load LDM Checkpoint: the demo prior, and whatever else has its file layout."""

from __future__ import annotations

from comfy_api.latest import io

from .host import folders
from .host import ldm_files as host_ldm
from .sockets import CATEGORY


class LoadLDMCheckpoint(io.ComfyNode):
    """A file of the original latent diffusion layout as MODEL, VAE and two conditionings."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="AnomalyDiffusionLoadLDMCheckpoint",
            display_name="Load LDM Checkpoint",
            category=f"{CATEGORY}/loaders",
            description=(
                "Loads a small latent diffusion model in the original LDM layout, such as the demo prior of this "
                "extension, which the stock loader does not read. For Stable Diffusion use Load Checkpoint."
            ),
            inputs=[
                io.Combo.Input(
                    "checkpoint",
                    options=folders.model_files(folders.CHECKPOINTS),
                    tooltip="A file in models/anomalydiffusion_checkpoints, or the demo prior of the extension.",
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
            ],
        )

    @classmethod
    def fingerprint_inputs(cls, checkpoint: str) -> str:
        return _file_state(checkpoint)

    @classmethod
    def execute(cls, checkpoint: str) -> io.NodeOutput:
        loaded = host_ldm.load_ldm_checkpoint(folders.model_file(folders.CHECKPOINTS, checkpoint))
        return io.NodeOutput(loaded.model, loaded.vae, loaded.empty, loaded.normal)


class EncodeLDMCaption(io.ComfyNode):
    """Words of a checkpoint's own table as conditioning, which for these files is all the text encoder there is."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="AnomalyDiffusionEncodeLDMCaption",
            display_name="Encode LDM Caption",
            category=f"{CATEGORY}/loaders",
            description=(
                "Turns words that a checkpoint in the original LDM layout knows into conditioning: a coarse word for "
                "training to start from, or a caption to sample. For Stable Diffusion use CLIP Text Encode."
            ),
            inputs=[
                io.Combo.Input(
                    "checkpoint",
                    options=folders.model_files(folders.CHECKPOINTS),
                    tooltip="The file that Load LDM Checkpoint loads.",
                ),
                io.String.Input(
                    "caption",
                    default="",
                    tooltip=(
                        "Words separated by commas, for example mask, or leather, brown, dent. Several words of one "
                        "kind, such as stain, scratch, give their mean. An unknown word lists all words."
                    ),
                ),
            ],
            outputs=[
                io.Conditioning.Output(
                    "conditioning", display_name="conditioning", tooltip="The conditioning of the words."
                ),
            ],
        )

    @classmethod
    def fingerprint_inputs(cls, checkpoint: str, caption: str) -> str:
        return f"{caption}|{_file_state(checkpoint)}"

    @classmethod
    def execute(cls, checkpoint: str, caption: str) -> io.NodeOutput:
        path = folders.model_file(folders.CHECKPOINTS, checkpoint)
        return io.NodeOutput(host_ldm.encode_ldm_caption(path, caption))


def _file_state(checkpoint: str) -> str:
    stat = folders.model_file(folders.CHECKPOINTS, checkpoint).stat()
    return f"{checkpoint}|{stat.st_size}|{stat.st_mtime_ns}"
