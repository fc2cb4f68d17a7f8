"""Settings from a TOML file and `--set`; whatever is wrong is told by its key, its value and what is allowed."""

import difflib
import json
import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, get_args

from pydantic import BaseModel, ValidationError

from reformer_core.train.settings import RunSettings


def read_table(file: Path) -> dict[str, Any]:
    """The content of a TOML file; raises ValueError if it can't be read or is no TOML."""
    try:
        return tomllib.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise ValueError(f"{file} can't be read: {error.strerror}") from error
    except ValueError as error:
        raise ValueError(f"{file} is no TOML file: {error}") from error


def set_values(table: dict[str, Any], assignments: Iterable[str]) -> None:
    """Changes a table by assignments such as `optimizer.kind=adamw` and `schedule.0.lengths=[512]`.

    Values are TOML; what isn't is taken as a string. Raises ValueError for what is no assignment or has no place.
    """
    for assignment in assignments:
        path, equals, text = assignment.partition("=")
        *parents, last = [part.strip() for part in path.split(".")]
        if not equals or not last:
            raise ValueError(f"--set {assignment}: must be KEY=VALUE, e.g. optimizer.learning_rate=1e-3")
        try:
            value = tomllib.loads(f"value = {text}")["value"]
        except tomllib.TOMLDecodeError:
            value = text
        place: Any = table
        try:
            for key in parents:
                place = place[int(key)] if isinstance(place, list) else place.setdefault(key, {})
            place[int(last) if isinstance(place, list) else last] = value
        except (IndexError, ValueError, TypeError, AttributeError):
            raise ValueError(f"--set {assignment}: there is no {path.strip()}") from None


def build_settings(table: Mapping[str, Any], source: str, folder: Path) -> RunSettings:
    """Validates a table.

    Args:
        table: as TOML gives it.
        source: where it is from, for errors.
        folder: that relative paths are relative to.

    Raises:
        ValueError: a line an error, which names the key by its path, e.g. `schedule.0.tokens`.
    """
    try:
        # As JSON: strict validation then takes lists for tuples and strings for paths, but converts nothing else.
        return RunSettings.model_validate_json(json.dumps(table, default=str), context=folder)
    except ValidationError as error:
        lines = dict.fromkeys(_explain(each, table) for each in error.errors(include_url=False))
        raise ValueError("\n".join(f"{source}: {line}" for line in lines)) from None


def _explain(error: Mapping[str, Any], table: Mapping[str, Any]) -> str:
    path, value = _locate(error["loc"], table)
    name, message = ".".join(map(str, path)), error["msg"]
    if error["type"] == "extra_forbidden":
        allowed = _keys_beside(path)
        near = difflib.get_close_matches(str(path[-1]), allowed, n=1)
        advice = f"did you mean {near[0]}?" if near else f"allowed are {', '.join(allowed)}"
        return f"{name} is no key that exists; {advice}"
    if error["type"] == "missing":
        return f"{'.'.join(map(str, error['loc']))} is missing, but needed"
    if error["type"] == "value_error":
        return f"{name}: {message.removeprefix('Value error, ')}".removeprefix(": ")
    allowed_values = message.replace("Input should", "must", 1).replace("an object", "a table")
    return f"{name} is {json.dumps(value, default=str)}, but {allowed_values}"


def _locate(location: tuple[int | str, ...], value: Any) -> tuple[list[int | str], Any]:
    """The path of an error in the table, and the value there; without the types that it tried of a union."""
    path: list[int | str] = []
    for key in location:
        if isinstance(key, int) if isinstance(value, list) else isinstance(value, dict) and key in value:
            value = value[key]
            path.append(key)
    return path, value


def _keys_beside(path: list[int | str]) -> list[str]:
    """The keys that the table may have which the last key of the path is in."""
    section: type[BaseModel] = RunSettings
    for key in path[:-1]:
        if isinstance(key, str):
            annotation: Any = section.model_fields[key].annotation
            section = annotation if isinstance(annotation, type) else get_args(annotation)[0]
    return list(section.model_fields)
