"""The networks in torch, and the LightningModule that trains them."""

from lightning_vfs.modules.attention import LSA
from lightning_vfs.modules.context import ClassContext, DiscreteContext, GaussianContext
from lightning_vfs.modules.dit import DiT
from lightning_vfs.modules.few_shot_diffusion import FewShotDiffusion
from lightning_vfs.modules.generation import FewShotGenerator
from lightning_vfs.modules.set_encoder import SetEncoder, SetTokens, ViTEncoder
from lightning_vfs.modules.spt import SPT
from lightning_vfs.modules.unet import UNet, UNetEncoder
from lightning_vfs.modules.vfsddpm import VFSDDPM
from lightning_vfs.training.optimizer import OptimizerConfig

__all__ = [
    "LSA",
    "SPT",
    "VFSDDPM",
    "ClassContext",
    "DiT",
    "DiscreteContext",
    "FewShotDiffusion",
    "FewShotGenerator",
    "GaussianContext",
    "OptimizerConfig",
    "SetEncoder",
    "SetTokens",
    "UNet",
    "UNetEncoder",
    "ViTEncoder",
]
