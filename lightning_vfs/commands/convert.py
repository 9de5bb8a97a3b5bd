"""lightning-vfs convert: a checkpoint becomes a folder with model.safetensors and config.json."""

from __future__ import annotations

from jsonargparse import auto_cli

from lightning_vfs.modules import VFSDDPM


def convert(ckpt_path: str, out: str) -> None:
    """Turn a Lightning checkpoint into a folder with model.safetensors and config.json.

    The averaged weights are taken where the run averaged them. Load it with `VFSDDPM.from_pretrained(folder)` or
    `lightning-vfs sample --pretrained folder`.

    Args:
        ckpt_path: a Lightning checkpoint.
        out: the folder; made if need be.
    """
    VFSDDPM.load_from_checkpoint(ckpt_path).save_pretrained(out)
    print(f"model.safetensors and config.json: {out}")


def run(args: list[str]) -> None:
    """Parse the arguments and convert."""
    auto_cli(convert, args=args, prog="lightning-vfs convert", as_positional=False)
