"""The model that a subcommand is asked to use."""

from __future__ import annotations

from lightning_vfs.core.errors import ConfigError
from lightning_vfs.modules import VFSDDPM


def check_one_model(ckpt_path: str | None, pretrained: str | None) -> None:
    """Raise ConfigError unless one of a checkpoint and a pretrained folder is given."""
    if (ckpt_path is None) == (pretrained is None):
        raise ConfigError("Give either --ckpt_path FILE or --pretrained FOLDER, to say which model to use.")


def spell_out_raw(args: list[str]) -> list[str]:
    """Arguments with `--raw` as `--raw=true`, if no value follows: the parser needs one."""
    return [
        "--raw=true" if arg == "--raw" and after not in ("true", "false") else arg
        for arg, after in zip(args, [*args[1:], ""], strict=True)
    ]


def load_model(ckpt_path: str | None, pretrained: str | None, autoencoder: str | None, raw: bool = False) -> VFSDDPM:
    """Model of a checkpoint or of a pretrained folder, on the CPU; of latents, with its autoencoder in another folder.

    Raises:
        ConfigError: neither is given, or both; an autoencoder for a model of pixels; or raw weights of a folder.
        CheckpointError: the file does not hold a lightning_vfs model.
    """
    check_one_model(ckpt_path, pretrained)
    if raw and not ckpt_path:
        raise ConfigError("--raw chooses between the weights of a checkpoint (--ckpt_path); --pretrained has one set.")
    model = VFSDDPM.load_from_checkpoint(ckpt_path, raw=raw) if ckpt_path else VFSDDPM.from_pretrained(str(pretrained))
    if autoencoder is not None:
        model.use_autoencoder(autoencoder)
    return model
