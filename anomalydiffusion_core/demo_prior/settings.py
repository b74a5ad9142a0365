"""What pretraining can be told."""

from __future__ import annotations

from dataclasses import dataclass, replace

from ..backends.ldm_autoencoder import WIDTHS, AutoencoderConfig
from ..backends.ldm_unet import UNetConfig
from ..errors import InputError
from ..options import Settings, option
from .renderers import RENDERERS, Renderer


@dataclass(frozen=True)
class PretrainSettings(Settings):
    """Options of ``pretrain-demo-prior`` beside time, folder, seed and start."""

    renderer: str = option("photos", "What is rendered to train on.", choices=tuple(RENDERERS))
    device: str = option("", "Where training runs, cpu or cuda; by default on a GPU if there is one.")
    workers: int = option(0, "Processes that render ahead; 0 renders in the training process.", min=0, max=256)
    threads: int = option(
        1, "Threads that each take a part of the noise predictor's batch: on a CPU set it to the cores.", min=1, max=64
    )
    images: int = option(20_000, "Images of 256 px that are encoded once, for the noise predictor.", min=32)
    batch: int = option(12, "Images per step of the noise predictor.", min=1)
    crops: int = option(12, "Crops of 64 px per step of the autoencoder.", min=3)
    autoencoder_share: float = option(0.3, "Share of the time that the autoencoder gets.", min=0.01, max=0.9)
    autoencoder_width: int = option(16, "Channels at full resolution, of at most 64: 16, 32 or 64.", min=16, max=64)
    latent_channels: int = option(4, "Channels of a latent.", min=4, max=32)
    width: int = option(64, "Channels of the noise predictor at its finest level, a multiple of 32.", min=32, step=32)
    word_dropping: float = option(0.1, "How often a single word of a caption is left out.", min=0, max=0.9)
    min_snr: float = option(5.0, "Cap of the signal-to-noise ratio as a weight (min-SNR); 0 weights all alike.", min=0)
    texture: float = option(0.05, "Weight of the strength of fine texture in the autoencoder's loss.", min=0)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.autoencoder_width not in WIDTHS:
            raise InputError(f"autoencoder_width: {self.autoencoder_width}. Give {', '.join(map(str, WIDTHS))}.")
        if self.width % 32:
            raise InputError(f"width: {self.width} is not a multiple of 32. Give 64 or 96.")

    @property
    def source(self) -> Renderer:
        """The renderer by its name."""
        return RENDERERS[self.renderer]

    def autoencoder(self) -> AutoencoderConfig:
        """Shape of the autoencoder."""
        return replace(WIDTHS[self.autoencoder_width], latent_channels=self.latent_channels)

    def unet(self) -> UNetConfig:
        """Shape of the noise predictor."""
        return UNetConfig(in_channels=self.latent_channels, model_channels=self.width)

    def shape(self) -> dict[str, object]:
        """What a folder of checkpoints cannot change any more."""
        names = ("renderer", "images", "autoencoder_width", "latent_channels", "width")
        return {name: getattr(self, name) for name in names}
