"""lightning-vfs demo: a page on which a few pictures of a class become new ones."""

from __future__ import annotations

from ipaddress import ip_address

from jsonargparse import auto_cli

from lightning_vfs.commands.machine import device_of
from lightning_vfs.commands.trust import import_trusted
from lightning_vfs.commands.usage import ExplainingParser
from lightning_vfs.core.checks import check_whole_number
from lightning_vfs.core.errors import ConfigError


def demo(
    models: str = "glyphs",
    host: str = "127.0.0.1",
    port: int = 7860,
    any_model: bool | None = None,
    device: str = "auto",
    open_browser: bool = False,
    trust: str | None = None,
) -> None:
    """Serve a page on which a few pictures of a class become new ones, step by step. Ctrl-C ends it.

    Args:
        models: that visitors choose among, separated by commas: `glyphs`, folders, checkpoints and ids of the hub.
        host: address to listen on; by default only this machine can open the page. 0.0.0.0 is all of them.
        port: to listen on; 0 takes a free one.
        any_model: whether visitors may name other models, which reads files of this machine and downloads from the hub;
            by default if only this machine can open the page.
        device: auto, cpu, cuda, cuda:1, ...
        open_browser: open the page in a browser.
        trust: import path of a custom encoder or denoiser that a checkpoint names, if you trust it.
    """
    check_whole_number("--port", port, 0)
    try:
        from lightning_vfs.commands.demo_app import build, launch
    except ImportError as error:
        raise ConfigError(f"The page needs gradio ({error}): pip install 'lightning_vfs[demo]'.") from error
    from lightning_vfs.commands.demo_studio import Studio

    import_trusted(trust)
    names = [name.strip() for name in models.split(",") if name.strip()]
    studio = Studio(names, is_loopback(host) if any_model is None else any_model, str(device_of(device)))
    page = build(studio)
    try:
        address = launch(page, server_name=host, server_port=port or None, inbrowser=open_browser)
    except OSError as error:
        raise ConfigError(
            f"{host}:{port} cannot be listened on ({error}): give another --port, or --port 0."
        ) from error
    print(f"The page is at {address} (Ctrl-C ends it).", flush=True)
    page.block_thread()


def is_loopback(host: str) -> bool:
    """Whether an address reaches this machine alone."""
    try:
        return host == "localhost" or ip_address(host).is_loopback
    except ValueError:
        return False


def run(args: list[str]) -> None:
    """Parse the arguments and serve."""
    auto_cli(demo, args=args, prog="lightning-vfs demo", as_positional=False, parser_class=ExplainingParser)
