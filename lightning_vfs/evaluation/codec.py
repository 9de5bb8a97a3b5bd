"""Records as JSON: dataclasses to plain values and back, each under the version of its schema."""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from types import UnionType
from typing import Any, Literal, NamedTuple, Self, get_args, get_origin, get_type_hints

import numpy as np

from lightning_vfs.core.errors import EvaluationError
from lightning_vfs.core.files import local_path, read_json, replacing
from lightning_vfs.version import __version__

CHECKSUM = "content_sha256"
"""Field of a written file that says what the others were when it was written."""


class JSONRecord:
    """What makes a dataclass of dataclasses one that is written as JSON, and read back.

    Attributes:
        SCHEMA: version of its fields.
        SINCE: fields by the schema that they came with: a record of an earlier one is read with None for them.
        OPTIONAL: fields that a record of any schema is read with None for, if it lacks them.
    """

    SCHEMA = 1
    SINCE = dict[int, tuple[str, ...]]()  # noqa: RUF012 (no annotation: hints are fields)
    OPTIONAL = tuple[str, ...]()

    def to_dict(self) -> dict[str, Any]:
        """Plain values that any JSON can hold, with `schema`; numbers that are not finite become strings (`NaN`)."""
        return {"schema": self.SCHEMA, **_plain(self)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Build from what `to_dict` gives, now or under an earlier schema.

        Raises:
            EvaluationError: another schema, or fields that are missing, unknown or of another type; all are named.
        """
        found: Any = values.get("schema")
        if found not in range(1, cls.SCHEMA + 1) or isinstance(found, bool):
            raise EvaluationError(
                "there is no `schema` in it, so it is not a record of an evaluation (fid.json)."
                if found is None
                else f"its schema is {found!r}, but this version of lightning_vfs ({__version__}) reads schemas 1 "
                f"to {cls.SCHEMA}: evaluate again, or use the version of lightning_vfs that wrote it."
            )
        problems = _Problems([], [], [])
        parts = {name: value for name, value in values.items() if name not in ("schema", CHECKSUM)}
        later = [path for schema, paths in cls.SINCE.items() if schema > found for path in paths]
        later += cls.OPTIONAL
        record: Self = _parsed(cls, _completed(parts, later), "", problems)
        if any(problems):
            kinds = {"missing": problems.missing, "not known": problems.unknown, "of another type": problems.wrong}
            listed = "; ".join(f"{kind}: {', '.join(names)}" for kind, names in kinds.items() if names)
            raise EvaluationError(
                f"the record of an evaluation does not have the fields of schema {found} ({listed}). "
                "It is damaged or was edited by hand: evaluate again."
            )
        return record

    def write(self, path: str | os.PathLike[str]) -> None:
        """Write as JSON for people to read; the file appears complete, and replaces an existing one.

        Raises:
            EvaluationError: it cannot be written.
        """
        values = self.to_dict()
        values[CHECKSUM] = checksum(values)
        text = json.dumps(values, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
        # Lists of numbers on one line each. Strings stay as they are: a line break in them is escaped.
        text = re.sub(r'\[\n[^"\[\]{}]*\]', lambda numbers: f"[{' '.join(numbers[0][1:-1].split())}]", text)
        file = local_path(path, "The record")
        try:
            with replacing(file) as temporary:
                # File names that are not Unicode give class names with lone surrogates, which JSON can only escape.
                temporary.write_bytes(text.encode(errors="backslashreplace"))
        except OSError as error:
            raise EvaluationError(f"The record of the evaluation cannot be written to {path}: {error}.") from error

    @classmethod
    def read(cls, path: str | os.PathLike[str]) -> Self:
        """Read what `write` wrote.

        Raises:
            EvaluationError: no such file, not JSON, another schema, or missing fields; the message names them.
        """
        values = plain_values(path)
        try:
            return cls.from_dict(values)
        except EvaluationError as error:
            raise EvaluationError(f"{path}: {error}") from None
        except OverflowError as error:
            raise EvaluationError(f"{path} is damaged: {error}") from error


def plain_values(path: str | os.PathLike[str]) -> dict[str, Any]:
    """What the file of a record holds, before its fields are checked.

    Raises:
        EvaluationError: no such file, not JSON, or no mapping.
        ConfigError: a URL.
    """
    file = local_path(path, "The record")
    try:
        values = read_json(file)
    except OSError as error:
        raise EvaluationError(
            f"{path} cannot be read ({error.strerror or error}): give the fid.json of an evaluation."
        ) from error
    except ValueError as error:  # JSONDecodeError, UnicodeDecodeError
        raise EvaluationError(f"{path} is not JSON ({error}): give the fid.json of an evaluation.") from error
    if not isinstance(values, dict):
        raise EvaluationError(f"{path} is not a record of an evaluation: it holds a {type(values).__name__}.")
    return values


def checksum(values: Mapping[str, Any]) -> str:
    """SHA-256 of all values of a file but the checksum itself, however they are laid out."""
    others = {name: value for name, value in values.items() if name != CHECKSUM}
    return hashlib.sha256(json.dumps(others, sort_keys=True).encode()).hexdigest()


def is_unchanged(values: Mapping[str, Any]) -> bool | None:
    """Whether a file's values are those that were written; None for files of versions that wrote no checksum.

    It finds mistakes: whoever changes a value on purpose can write a new checksum, too.
    """
    return None if CHECKSUM not in values else values[CHECKSUM] == checksum(values)


def _completed(parts: dict[str, Any], paths: list[str]) -> dict[str, Any]:
    """Parts of a record of an earlier schema, with None for the fields that came later."""
    for part, *below in (path.split(".") for path in paths):
        found = parts.get(part)
        if isinstance(found, dict) and below[0] == "*":
            found = {name: _completed({part: each}, [f"{part}.{below[1]}"])[part] for name, each in found.items()}
        elif isinstance(found, dict):
            found = {below[0]: None, **found}
        parts = parts | ({part: found} if part in parts else {})
    return parts


class _Problems(NamedTuple):
    """Fields that are missing, unknown, and of another type."""

    missing: list[str]
    unknown: list[str]
    wrong: list[str]


def _plain(value: Any) -> Any:
    if is_dataclass(value):
        return {f.name: _plain(getattr(value, f.name)) for f in fields(value)}
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    return value


def _parsed(hint: Any, value: Any, where: str, problems: _Problems) -> Any:
    """A value of the type that the hint names, from plain ones; what prevents it goes to `problems`."""
    kind, args = get_origin(hint), get_args(hint)
    if kind is UnionType:  # each of them is with None
        return None if value is None else _parsed(args[0], value, where, problems)
    if is_dataclass(hint) and isinstance(value, dict):
        hints = get_type_hints(hint)
        problems.missing.extend(_below(where, name) for name in hints if name not in value)
        problems.unknown.extend(_below(where, name) for name in value if name not in hints)
        parts = {n: _parsed(h, value[n], _below(where, n), problems) for n, h in hints.items() if n in value}
        return None if any(problems) else hint(**parts)  # type: ignore[operator]
    if kind is dict and isinstance(value, dict):
        return {name: _parsed(args[1], item, _below(where, name), problems) for name, item in value.items()}
    if kind is tuple and isinstance(value, list) and (args[-1] is ... or len(args) == len(value)):
        return tuple(_parsed(args[0], item, where, problems) for item in value)
    if kind is Literal and value in args:
        return value
    if hint is float and (value in ("NaN", "Infinity", "-Infinity") or type(value) in (int, float)):
        return float(value)
    if type(value) is hint:
        return value
    expected = hint.__name__ if kind is None else str(hint)
    problems.wrong.append(f"{where} is {str(value)[:40]!r}, not {expected}")
    return None


def _below(where: str, name: str) -> str:
    return f"{where}.{name}" if where else name
