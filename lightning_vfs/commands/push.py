"""lightning-vfs push: share a model on the Hugging Face hub, with its card."""

from __future__ import annotations

from pathlib import Path

from jsonargparse import auto_cli

from lightning_vfs.commands.last_run import spell_out_last
from lightning_vfs.commands.lightning import find_last
from lightning_vfs.commands.models import load_model, spell_out_raw
from lightning_vfs.commands.trust import import_trusted
from lightning_vfs.commands.usage import ExplainingParser
from lightning_vfs.core.errors import ConfigError, EvaluationError
from lightning_vfs.evaluation.model import model_record
from lightning_vfs.evaluation.record import FILE_NAME, EvaluationRecord, ModelRecord
from lightning_vfs.modules import VFSDDPM
from lightning_vfs.training.pretrained import pretrained_folder


def push(
    repo_id: str,
    ckpt_path: str | None = None,
    pretrained: str | None = None,
    raw: bool = False,
    record: str | None = None,
    picture: str | None = None,
    description: str | None = None,
    data: str | None = None,
    license: str | None = None,
    commit_message: str = "Push model using lightning_vfs.",
    private: bool | None = None,
    branch: str | None = None,
    create_pr: bool | None = None,
    trust: str | None = None,
) -> None:
    """Share a model on the Hugging Face hub: weights, configuration and a card. Log in first with `hf auth login`.

    Args:
        repo_id: such as user/model; the repository is made if necessary.
        ckpt_path: a Lightning checkpoint; or give `pretrained`.
        pretrained: a folder with model.safetensors and config.json.
        raw: use the checkpoint's raw weights instead of the averaged ones.
        record: the fid.json of an evaluation of these weights; by default that beside them, if there is one.
        picture: PNG of generated images for the card, such as the grid.png of `lightning-vfs sample`.
        description: what it is and what it is for, in Markdown.
        data: what it was trained on, whose that is, under which licence, in Markdown.
        license: of the model, an identifier that the hub knows, such as apache-2.0.
        commit_message: of the commit.
        private: whether a new repository is private.
        branch: to commit to; by default the main branch.
        create_pr: open a pull request instead of changing the branch.
        trust: import path of a custom encoder or denoiser that the checkpoint names, if you trust it.
    """
    import_trusted(trust)
    model = load_model(ckpt_path, pretrained, None, raw)
    found = _record_of(model, ckpt_path, pretrained, record)
    url = model.push_to_hub(
        repo_id,
        record=found,
        picture=picture,
        description=description,
        data=data,
        license=license,
        commit_message=commit_message,
        private=private,
        branch=branch,
        create_pr=create_pr,
    )
    evaluated = "with the figures of its evaluation" if found else f"without figures: there is no {FILE_NAME} of it"
    print(f"{url} ({evaluated})")


def _record_of(
    model: VFSDDPM, ckpt_path: str | None, pretrained: str | None, record: str | None
) -> EvaluationRecord | None:
    """The record of the model's evaluation: the file that is named, or one beside the weights, if it is theirs.

    Raises:
        EvaluationError: the file that is named is no record.
        ConfigError: it is the record of other weights.
    """
    own = None if ckpt_path is None else model_record(model, ckpt_path)
    if record is not None:
        given = EvaluationRecord.read(record)
        if own is not None and not _is_of(given.model, own):
            raise ConfigError(
                f"{record} is the evaluation of {given.model.weights} weights of step {given.model.global_step}, but "
                f"{ckpt_path} gives {own.weights} weights of step {own.global_step}, or those of another run: evaluate "
                "it with `lightning-vfs evaluate`."
            )
        return given
    folder = Path(ckpt_path).parent if ckpt_path else pretrained_folder(str(pretrained))
    for file in sorted(folder.glob(f"{Path(FILE_NAME).stem}*.json")):
        try:
            found = EvaluationRecord.read(file)
        except EvaluationError:  # something else of that name
            continue
        if own is None or _is_of(found.model, own):
            return found
    return None


def _is_of(recorded: ModelRecord, own: ModelRecord) -> bool:
    """Whether a record is that of these weights: by the checkpoint's hash, or by run and step if it was in training."""
    if recorded.weights != own.weights:
        return False
    if recorded.checkpoint_sha256 is not None:
        return recorded.checkpoint_sha256 == own.checkpoint_sha256
    return (recorded.run_sha256, recorded.global_step) == (own.run_sha256, own.global_step)


def run(args: list[str]) -> None:
    """Parse the arguments and share the model."""
    args = spell_out_raw(spell_out_last(args, find_last))
    auto_cli(push, args=args, prog="lightning-vfs push", as_positional=False, parser_class=ExplainingParser)
