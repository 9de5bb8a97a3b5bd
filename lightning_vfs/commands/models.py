"""The model that a subcommand is asked to use."""

from __future__ import annotations

from itertools import pairwise

from lightning_vfs.core.checks import choose
from lightning_vfs.core.errors import CheckpointError, ConfigError
from lightning_vfs.core.fingerprint import KEY
from lightning_vfs.core.fingerprint import VFSDDPM as OUR_CLASS
from lightning_vfs.core.trust import is_loaded, refuse
from lightning_vfs.modules import VFSDDPM
from lightning_vfs.training.checkpoints import read_checkpoint


def check_one_model(ckpt_path: str | None, pretrained: str | None) -> None:
    """Raise ConfigError unless one of a checkpoint and a pretrained folder is given."""
    if (ckpt_path is None) == (pretrained is None):
        raise ConfigError("Give either --ckpt_path FILE or --pretrained FOLDER, to say which model to use.")


def spell_out_raw(args: list[str]) -> list[str]:
    """Arguments with `--raw` as `--raw=true`, if no value follows: the parser needs one."""
    return [
        "--raw=true" if arg == "--raw" and after not in ("true", "false") else arg
        for arg, after in pairwise([*args, ""])
    ]


def load_model(ckpt_path: str | None, pretrained: str | None, autoencoder: str | None, raw: bool = False) -> VFSDDPM:
    """Model of a checkpoint or of a pretrained folder, on the CPU; of latents, with its autoencoder in another folder.

    Raises:
        ConfigError: neither is given, or both; an autoencoder for a model of pixels; or raw weights of a folder.
        CheckpointError: the file does not hold a lightning_vfs model, or one of a class that is not trusted.
    """
    check_one_model(ckpt_path, pretrained)
    if raw and not ckpt_path:
        raise ConfigError("--raw chooses between the weights of a checkpoint (--ckpt_path); --pretrained has one set.")
    if ckpt_path:
        model = _class_of(ckpt_path).load_from_checkpoint(ckpt_path, raw=raw)
    else:
        model = VFSDDPM.from_pretrained(str(pretrained))
    if autoencoder is not None:
        model.use_autoencoder(autoencoder)
    return model


def _class_of(ckpt_path: str) -> type[VFSDDPM]:
    """The class of the model that wrote a checkpoint.

    Raises:
        UntrustedCodeError: it is not part of this package, and the user has not named it.
        CheckpointError: it cannot be imported, or is no subclass of VFSDDPM.
    """
    stated = read_checkpoint(ckpt_path).get(KEY)
    named = stated.get("model.class", OUR_CLASS) if isinstance(stated, dict) else OUR_CLASS
    if named == OUR_CLASS:
        return VFSDDPM
    if not isinstance(named, str) or "<" in named or named.startswith("__main__."):
        raise CheckpointError(
            f"The model of {ckpt_path} is of the class {str(named)[:200]}, which no other program can import: put it "
            "into a module, and train with that; or use the checkpoint in Python."
        )
    if not is_loaded(named):
        refuse(ckpt_path, [named])
    found = choose(named, {})
    if not issubclass(found, VFSDDPM):
        raise CheckpointError(f"{ckpt_path} says that its model is of the class {named}, which is no VFSDDPM.")
    return found
