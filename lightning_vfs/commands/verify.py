"""lightning-vfs verify: whether the images of an evaluation are those of a checkpoint."""

from __future__ import annotations

import json

import torch

from lightning_vfs.commands.evaluate import data_of_run
from lightning_vfs.commands.last_run import spell_out_last
from lightning_vfs.commands.lightning import find_last
from lightning_vfs.commands.machine import instantiation
from lightning_vfs.commands.models import check_one_model, load_model
from lightning_vfs.commands.trust import HELP as TRUST_HELP
from lightning_vfs.commands.trust import import_trusted
from lightning_vfs.commands.usage import ExplainingParser
from lightning_vfs.core.errors import ConfigError, EvaluationError
from lightning_vfs.core.files import file_sha256
from lightning_vfs.data import SetDataModule
from lightning_vfs.data.catalog import DATA_SETS  # noqa: F401 - the parser finds subclasses
from lightning_vfs.evaluation.codec import is_unchanged, plain_values
from lightning_vfs.evaluation.record import EvaluationRecord
from lightning_vfs.evaluation.verification import Verification, verify
from lightning_vfs.modules import VFSDDPM

DESCRIPTION = """Generate a sample of an evaluation's images again, and say whether they are those of the record.

The record (fid.json) describes up to 32 generated images a split. They are generated from the same supports with the
same noise, by the given checkpoint's weights, and have to be identical, or to differ by no more than rounding does. The
exit status is 0 if they are, and 1 if not. Figures are not computed again: use evaluate and compare for that."""


def _parser() -> ExplainingParser:
    parser = ExplainingParser(prog="lightning-vfs verify", description=DESCRIPTION)
    parser.add_argument("record", type=str, help="the record of an evaluation, fid.json")
    parser.add_argument("--ckpt_path", type=str | None, default=None, help="a Lightning checkpoint; or --pretrained")
    parser.add_argument("--pretrained", type=str | None, default=None, help="a folder of `convert`, or a hub id")
    parser.add_argument("--autoencoder", type=str | None, default=None, help="its folder, for a model of latents")
    parser.add_argument("--trust", type=str | None, default=None, help=TRUST_HELP)
    parser.add_subclass_arguments(SetDataModule, "data", required=False, help="data set; by default the run's own")
    parser.add_argument("--device", type=str, default="auto", help="auto, cpu, cuda, cuda:1, ...")
    return parser


def run(args: list[str]) -> int:
    """Parse the arguments and verify; returns the exit status.

    Raises:
        ConfigError: no model, two of them, no data, or a device that there is not.
        EvaluationError: what is no record, or one that describes no images.
    """
    parser = _parser()
    args = spell_out_last(args, find_last)
    options = parser.parse_args(args)
    check_one_model(options.ckpt_path, options.pretrained)
    record = EvaluationRecord.read(options.record)
    if is_unchanged(plain_values(options.record)) is False:
        print("not verified: the record was changed after it was written (its content_sha256 is that of other values)")
        return 1
    trusted = import_trusted(options.trust)
    raw = record.model.weights == "raw"
    model = load_model(options.ckpt_path, options.pretrained, options.autoencoder, raw)
    if options.get("data") is None:
        options = parser.parse_args([*args, f"--data={json.dumps(data_of_run(options.ckpt_path, trusted))}"])
    with instantiation():
        data = parser.instantiate(options).data
    device = _device(options.device)
    sha256 = None if options.ckpt_path is None else file_sha256(options.ckpt_path)

    def compared(model: VFSDDPM) -> Verification:
        model.use_device(device)
        try:
            return verify(record, model.to(device), data, checkpoint_sha256=sha256, trusted=trusted)
        except EvaluationError as error:
            raise EvaluationError(f"{options.record}: {error}") from error

    found = compared(model)
    if found.verified and found.identical < found.images:  # after a few steps the average is within rounding, too
        other = compared(load_model(options.ckpt_path, options.pretrained, options.autoencoder, not raw))
        if other.identical > found.identical:
            kinds = ("averaged", "raw") if raw else ("raw", "averaged")
            found.problems.append(
                f"the record names the {kinds[1]} weights, of which {found.identical} of {found.images} images are "
                f"identical, but {other.identical} are of the {kinds[0]} ones"
            )
    print(*_said(found, record, sha256, str(device)), sep="\n")
    return 0 if found.verified else 1


def _said(found: Verification, record: EvaluationRecord, sha256: str | None, device: str) -> list[str]:
    if found.problems:
        return [f"not verified: {problem}" for problem in found.problems]
    if found.identical < found.images:
        return [
            f"verified up to rounding: {found.identical} of {found.images} images are identical; of the others, "
            f"thumbnails differ by at most {found.difference} of 255 grey levels (recorded on "
            f"{record.environment.device} in batches of {record.environment.batch_size}, now {device})"
        ]
    stated = record.model.checkpoint_sha256
    other = (
        "" if stated == sha256 or None in (stated, sha256) else "; the checkpoint is another file with these weights"
    )
    return [f"verified: all {found.images} sampled images are identical{other}"]


def _device(name: str) -> torch.device:
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ConfigError(f"--device {name}: there is no such device here ({str(error).splitlines()[0]}).") from error
    return device
