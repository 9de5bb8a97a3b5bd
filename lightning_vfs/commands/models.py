"""The model that a subcommand is asked to use."""

from __future__ import annotations

from lightning_vfs.core.errors import ConfigError
from lightning_vfs.modules import VFSDDPM


def check_one_model(ckpt_path: str | None, pretrained: str | None) -> None:
    """Raise ConfigError unless one of a checkpoint and a pretrained folder is given."""
    if (ckpt_path is None) == (pretrained is None):
        raise ConfigError("Give either --ckpt_path FILE or --pretrained FOLDER, to say which model it is.")


def load_model(ckpt_path: str | None, pretrained: str | None, autoencoder: str | None) -> VFSDDPM:
    """Model of a checkpoint or of a pretrained folder, on the CPU; of latents, with its autoencoder in another folder.

    Raises:
        ConfigError: neither is given, or both; or an autoencoder for a model of pixels.
        CheckpointError: the file is no model of ours.
    """
    check_one_model(ckpt_path, pretrained)
    model = VFSDDPM.load_from_checkpoint(ckpt_path) if ckpt_path else VFSDDPM.from_pretrained(str(pretrained))
    if autoencoder is not None:
        model.use_autoencoder(autoencoder)
    return model
