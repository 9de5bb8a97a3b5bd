"""The Hugging Face hub: files of models are downloaded and uploaded; no code from there is run."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from lightning_vfs.core.errors import CheckpointError, ConfigError, VFSError

SECONDS = 10.0
"""Time that the hub has for its first answer; the client's own look-up of a model would wait for ever."""

TIMEOUTS = {"Timeout", "TimeoutException", "TimeoutError"}
UNREACHABLE = {"ConnectError", "ConnectionError", "NetworkError", "OfflineModeIsEnabled"}
"""Names of errors: the client's HTTP library is another one in each of its versions."""


def _client() -> ModuleType:
    """huggingface_hub.

    Raises:
        ConfigError: it is not installed.
    """
    try:
        import huggingface_hub
    except ImportError:
        raise ConfigError("The hub needs huggingface_hub: `pip install 'lightning_vfs[hub]'`.") from None
    return huggingface_hub


def download(repo_id: str, files: Sequence[str], revision: str | None = None, **options: Any) -> Path:
    """Folder of the local cache that has a model's files, downloaded if necessary.

    Args:
        repo_id: such as `user/model`.
        files: names of the files; nothing else is downloaded.
        revision: branch, tag or commit; by default the main branch.
        **options: `token`, `cache_dir`, `force_download` and `local_files_only`, as for `snapshot_download`.

    Raises:
        ConfigError: huggingface_hub is not installed.
        CheckpointError: it cannot be downloaded; the message says why, in one line.
    """
    client = _client()
    silence = None if options.get("local_files_only") else _silence(repo_id, revision, options.get("token"))
    if silence is not None:  # what was downloaded before is used, as the client does
        options["local_files_only"] = True
    try:
        return Path(client.snapshot_download(repo_id, revision=revision, allow_patterns=list(files), **options))
    except Exception as error:  # the client raises many kinds: bad id, no such repository, no network, a full disk
        raise CheckpointError(
            f"There is no folder {repo_id}, and it cannot be downloaded from the hub: "
            f"{_reason(silence or error, revision)}"
        ) from error


def _silence(repo_id: str, revision: str | None, token: str | bool | None) -> Exception | None:
    """The error with which a hub that does not answer was given up."""
    try:
        _client().HfApi(token=token).model_info(repo_id, revision=revision, timeout=SECONDS)
    except Exception as error:  # others are raised again by the download
        return error if _kinds(error) & (TIMEOUTS | UNREACHABLE) else None
    return None


def check_repo_id(repo_id: str) -> None:
    """Raise ConfigError unless a model can have this id on the hub."""
    _client()
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(repo_id)
    except ValueError as error:
        raise ConfigError(
            f"{repo_id!r} is no id of a model on the hub, such as user/model: {_in_a_line(error)}"
        ) from None


def upload(
    folder: Path,
    repo_id: str,
    commit_message: str,
    private: bool | None = None,
    token: str | bool | None = None,
    branch: str | None = None,
    create_pr: bool | None = None,
) -> str:
    """Make the model's repository if necessary, and commit all files of a folder to it at once.

    Args: as for `VFSDDPM.push_to_hub`.

    Returns:
        URL of the commit.

    Raises:
        ConfigError: huggingface_hub is not installed.
        VFSError: the hub refuses it, or cannot be reached; the message says why, in one line.
    """
    client = _client()
    api = client.HfApi(token=token)
    try:
        full_id = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
        info = api.upload_folder(
            repo_id=full_id, folder_path=folder, commit_message=commit_message, revision=branch, create_pr=create_pr
        )
    except Exception as error:
        raise VFSError(f"{repo_id} cannot be uploaded to the hub: {_reason(error, branch)}") from error
    return str(info.pr_url or info.commit_url)


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    """An error, its cause, the cause of that, and so on."""
    while error is not None:
        yield error
        error = error.__cause__


def _kinds(error: BaseException) -> set[str]:
    return {kind.__name__ for kind in type(error).__mro__}


def _reason(error: Exception, revision: str | None) -> str:
    """What went wrong and what to do, in a line."""
    from huggingface_hub.errors import GatedRepoError, OfflineModeIsEnabled, RepositoryNotFoundError
    from huggingface_hub.errors import RevisionNotFoundError as NoSuchRevisionError

    if type(error) is ValueError:  # the hub's reasons for refusing a card
        return _in_a_line(error)
    log_in = "log in with `hf auth login`, or give a token that may"
    for each in _causes(error):
        status = getattr(getattr(each, "response", None), "status_code", None)
        if isinstance(each, OfflineModeIsEnabled):
            return "HF_HUB_OFFLINE is set, and the local cache does not have it. Unset it to download."
        if isinstance(each, GatedRepoError):
            return f"its authors grant access on request. Ask for it on the model's page, then {log_in}."
        if isinstance(each, NoSuchRevisionError):
            return f"it has no revision {revision}. Leave the revision out for the main branch."
        if status == 403:
            return f"the hub refuses access (403): {log_in}."
        if isinstance(each, RepositoryNotFoundError) or status == 401:
            return f"the hub has no such model, or access needs a login ({status}). Check the id; {log_in}."
        if _kinds(each) & TIMEOUTS:
            return f"{_endpoint()} did not answer in time. Try again later."
        if _kinds(each) & UNREACHABLE:
            return f"{_endpoint()} cannot be reached. Check the network, or give a folder of this machine."
        if status is not None:
            return f"the hub answers {status}. " + ("Try again later." if status >= 500 else _in_a_line(each))
    return _in_a_line(error)


def _endpoint() -> str:
    return str(_client().HfApi().endpoint)


def _in_a_line(error: BaseException) -> str:
    return (" ".join(str(error).split()) or type(error).__name__)[:500]
