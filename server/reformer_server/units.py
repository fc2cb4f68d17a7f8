"""Sizes, durations and answers as people write them: `12GiB`, `1h30m`, `yes`."""

import math
import re

MAX_BYTES = 2**63
MAX_SECONDS = 36_525 * 86_400.0  # clocks and the contract's timestamps take more, but not everything

_BYTES = {"": 1, "b": 1} | {
    prefix + suffix: base**power
    for power, prefix in enumerate("kmgt", start=1)
    for suffix, base in (("", 1024), ("i", 1024), ("ib", 1024), ("b", 1000))
}
_SECONDS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}

_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([a-z]*)", re.IGNORECASE)
_DURATION_PART = re.compile(r"(\d+(?:\.\d+)?)\s*(ms|s|m|h|d)", re.IGNORECASE)


def parse_size(text: str) -> int:
    """Bytes of `text`: `12GiB`, `16Gi`, `512M` (binary), `2GB` (decimal) or a plain number. Raises ValueError."""
    match = _SIZE.fullmatch(text.strip())
    factor = _BYTES.get(match[2].lower()) if match else None
    size = float(match[1]) * factor if match and factor else math.nan
    if not size < MAX_BYTES:
        raise ValueError(f"{text!r} is no size; write bytes or a unit, e.g. 12GiB or 512MiB")
    return int(size)


def parse_yes_or_no(text: str) -> bool:
    """Whether `text` means yes: `yes` and `true`, `no` and `false`. Raises ValueError."""
    answers = {"yes": True, "true": True, "no": False, "false": False}
    answer = answers.get(text.strip().lower())
    if answer is None:
        raise ValueError(f"{text!r} is neither yes nor no")
    return answer


def parse_duration(text: str) -> float:
    """Seconds of `text`: `1h`, `1h30m`, `90s`, `500ms`, `7d` or a plain number, up to a century. Raises ValueError."""
    text = text.strip()
    try:
        seconds = float(text) if re.fullmatch(r"[\d.]+", text) else _sum_of_parts(text)
    except ValueError:
        raise ValueError(f"{text!r} is no duration; write seconds or units, e.g. 90s, 30m or 1h30m") from None
    if seconds > MAX_SECONDS:
        raise ValueError(f"{text!r} is more than a century, {MAX_SECONDS:,.0f} seconds; write less")
    return seconds


def _sum_of_parts(text: str) -> float:
    if not text or _DURATION_PART.sub("", text).strip():
        raise ValueError
    return sum(float(part[1]) * _SECONDS[part[2].lower()] for part in _DURATION_PART.finditer(text))


def format_size(size_bytes: int) -> str:
    """`size_bytes` in the binary unit that reads best: `11.9 GiB`."""
    size = float(size_bytes)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(size) < 1024:
            return f"{size:,.0f} B" if unit == "B" else f"{size:,.1f} {unit}"
        size /= 1024
    return f"{size:,.1f} TiB"
