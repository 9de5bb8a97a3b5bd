"""The networks in torch, and the LightningModule that trains them."""

from lightning_vfs.modules.context import GaussianContext
from lightning_vfs.modules.dit import DiT
from lightning_vfs.modules.few_shot_diffusion import FewShotDiffusion
from lightning_vfs.modules.optimizer import OptimizerConfig
from lightning_vfs.modules.set_encoder import LSA, SetEncoder
from lightning_vfs.modules.spt import SPT
from lightning_vfs.modules.vfsddpm import VFSDDPM

__all__ = ["LSA", "SPT", "VFSDDPM", "DiT", "FewShotDiffusion", "GaussianContext", "OptimizerConfig", "SetEncoder"]
