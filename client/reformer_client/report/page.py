"""One self-contained page: template, style, script and scores in one file that asks no network for anything."""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import html
import json
import math
import re
from collections.abc import Mapping
from datetime import UTC, datetime
from importlib.resources import files
from typing import TYPE_CHECKING, Any

from reformer_client.report.packing import STEPS_A_BIT, UNSCORED, pack
from reformer_client.report.passages import find_passages
from reformer_client.report.surprise import surprise_of

if TYPE_CHECKING:
    from reformer_client.results import ModelInfo
    from reformer_client.scores import Scores

SCRIPTS = (
    "series.js", "format.js", "canvas.js", "surprise-chart.js", "chart-input.js", "overview.js", "reader.js",
    "search.js", "panels.js", "main.js",
)  # fmt: skip
"""In this order one script: what comes later uses what comes before."""


def page(scores: Scores, *, title: str, model: ModelInfo | None = None, created: datetime | None = None) -> str:
    """The page as HTML. A million tokens take about two seconds and become five megabytes.

    Args:
        scores: with their text; of tokens that are no text the page shows the ids.
        title: names what was scored.
        model: what scored it, if the page shall say so.
        created: when; default: now.

    Raises:
        ValueError: there are no tokens.
    """
    if not scores.tokens:
        raise ValueError("there are no scores to show: they are of 0 tokens")
    title = title.encode("utf-8", "replace").decode()  # names of files may have bytes that are no text
    surprise = surprise_of(scores)
    style, script = _asset("style.css"), "\n".join(map(_asset, SCRIPTS))
    facts = {
        "title": title,
        "created": (created or datetime.now(UTC)).isoformat(timespec="seconds"),
        "model": None if model is None else _facts_of(model),
        "seconds": None if scores.timings is None else scores.timings.prefill_seconds,
        "tokens": len(surprise),
        "firstToken": surprise.first_token,
        "isText": surprise.is_text,
        "bits": surprise.bits_before[-1],
        "perplexity": scores.perplexity if math.isfinite(scores.perplexity) else None,
        "stepsABit": STEPS_A_BIT,
        "unscored": UNSCORED,
        "passages": dataclasses.asdict(find_passages(surprise)),
    }
    return _filled(
        _asset("page.html"),
        {
            "title": html.escape(title),
            "style_hash": _hash(style),
            "script_hash": _hash(script),
            "style": style,
            "script": script,
            "facts": _json(facts),
            "data": pack(surprise),
        },
    )


def _facts_of(model: ModelInfo) -> dict[str, Any]:
    return {
        "name": model.name,
        "parameters": model.parameters,
        "dtype": model.dtype,
        "device": model.device,
        "numHashes": model.num_hashes,
        "serverVersion": model.server_version,
    }


def _asset(name: str) -> str:
    return (files("reformer_client.report") / "assets" / name).read_text(encoding="utf-8")


def _hash(source: str) -> str:
    """For the page's Content-Security-Policy: it runs this and nothing else, wherever a text should get to."""
    return "sha256-" + base64.b64encode(hashlib.sha256(source.encode()).digest()).decode()


def _json(value: Any) -> str:
    """JSON that can stand in a `<script>`: no text in it can end the element."""
    return json.dumps(value, allow_nan=False).replace("<", "\\u003c")


def _filled(template: str, values: Mapping[str, str]) -> str:
    """`{{name}}` becomes values["name"]; what is put in is not looked at again."""
    return re.sub(r"\{\{(\w+)\}\}", lambda match: values[match[1]], template)
