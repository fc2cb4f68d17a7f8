"""docs/training.md has every setting of a training, its default, and examples that are valid."""

import json
import re
import tomllib
from pathlib import Path

import pytest

from reformer_core.train import settings
from reformer_core.train.settings_file import build_settings

PAGE = (Path(__file__).parents[2] / "docs/training.md").read_text(encoding="utf-8")
SECTIONS: dict[str, type[settings.Section]] = {
    "`[model]`": settings.ModelSettings,
    "`[data]`": settings.DataSettings,
    "`[[schedule]]`": settings.Phase,
    "`[optimizer]`": settings.OptimizerSettings,
    "`[checkpoint]`": settings.CheckpointSettings,
    "`[card]`": settings.CardSettings,
    "Settings": settings.RunSettings,
}


def table(heading: str) -> dict[str, str]:
    """Key -> default, as written, of the first table after a heading."""
    text = re.search(rf"^#+ {re.escape(heading)}\n(.*?)(?=^#)", PAGE, re.M | re.S)
    assert text is not None, heading
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in text[1].splitlines() if line[:3] == "| `"]
    return {key: default for keys, default, _ in rows for key in re.findall(r"`(\w+)`", keys)}


@pytest.mark.parametrize("heading", SECTIONS)
def test_every_key_and_its_default(heading: str) -> None:
    told, there = table(heading), dict(SECTIONS[heading].model_fields)
    if heading == "`[model]`":
        there = {
            key: field for key, field in there.items() if key in ("config", "init")
        }  # the rest is ReformerConfig's
    assert set(told) == set(there)
    for key, field in there.items():
        if told[key].startswith("`"):
            assert json.loads(json.dumps(field.default)) == tomllib.loads(f"value = {told[key].strip('`')}")["value"]
        else:  # said in words, or in a table of its own
            assert field.is_required() or field.default is None or isinstance(field.default, settings.Section), key


def test_the_examples_are_valid() -> None:
    examples = re.findall(r"```toml\n(.*?)```", PAGE, re.S)
    assert len(examples) == 2
    for example in examples:
        build_settings(tomllib.loads(example), "docs/training.md", Path())
