"""lightning-vfs extractor fit: a feature extractor for data that Inception does not know."""

from __future__ import annotations

from pathlib import Path

from jsonargparse import ActionConfigFile

from lightning_vfs.commands.usage import ExplainingParser
from lightning_vfs.core.errors import UsageError
from lightning_vfs.core.files import local_path
from lightning_vfs.data.catalog import DATA_SETS  # noqa: F401 - the parser finds the data sets that are imported
from lightning_vfs.data.module import SetDataModule
from lightning_vfs.metrics.extractor_folder import check_name, check_new, save_extractor
from lightning_vfs.metrics.extractor_training import fit_extractor

HELP = """Train a small classifier on the training classes of a data set, in minutes on a CPU.

Its features take the place of Inception's: --fid.feature_extractor FOLDER. Give the data as `fit` gets it, so that the
classes are the same; those of the val and test splits are not looked at."""


def _parser() -> ExplainingParser:
    parser = ExplainingParser(prog="lightning-vfs extractor fit", description=HELP)
    parser.add_argument("--config", action=ActionConfigFile, help="YAML with any of these options")
    parser.add_argument("--out", type=str, required=True, help="new folder for weights and card")
    parser.add_argument("--name", type=str | None, default=None, help="in names of figures; by default the folder's")
    parser.add_argument("--image_size", type=int | None, default=None, help="16 to 64; by default the data's")
    parser.add_argument("--channels", type=int | None, default=None, help="1 or 3; by default the data's")
    parser.add_argument("--epochs", type=int | None, default=None, help="by default about 1,200 steps of 256 images")
    parser.add_argument("--seed", type=int, default=0, help="of weights, order, augmentation and held-out images")
    parser.add_subclass_arguments(SetDataModule, "data", required=True, help="data set, as for `fit`")
    return parser


def run(args: list[str]) -> int:
    """Parse the arguments, train and save; returns the exit status.

    Raises:
        UsageError: another command than `fit`.
        ConfigError: an option is not valid, or the folder holds something.
        DataError: what is wrong with the data.
    """
    if args[:1] == ["--help"]:
        _parser().print_help()
        return 0
    if args[:1] != ["fit"]:
        found = f"{args[0]!r} is no command of it" if args else "a command is missing"
        raise UsageError(f"{found}: lightning-vfs extractor fit --data CLASS --out FOLDER trains one.")
    parser = _parser()
    options = parser.parse_args(args[1:])
    out = local_path(options.out, "--out")
    name = options.name or Path(out.absolute()).name
    check_name(name)
    check_new(out)
    data = parser.instantiate(options).data
    classifier, card = fit_extractor(
        data,
        image_size=options.image_size,
        channels=options.channels,
        epochs=options.epochs,
        seed=options.seed,
        show_progress=True,
    )
    save_extractor(classifier, {"name": name, **card}, out)
    print(
        f"{out}: {card['accuracy']:.1%} of {card['held_out']:,} held-out images of {len(card['classes']):,} classes "
        f"are classified right (chance {card['chance']:.2%}), after {card['epochs']} epochs of {card['images']:,} "
        f"images in {card['seconds']:.0f} s."
    )
    print(f"Use it with: --fid.feature_extractor {out}")
    return 0
