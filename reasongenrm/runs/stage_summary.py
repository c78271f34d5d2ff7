"""A finished stage as one page of Markdown: counts in, out and dropped, settings, address.

`Task.publish` writes it for tasks whose page in the KFP UI would otherwise say nothing. Everything comes from the
artifact's manifest, so a stage that was reused tells the same as one that has just run.
"""

from collections.abc import Iterable, Mapping
from typing import Any

from reasongenrm.store.artifacts import Manifest

_DROPPED = "num_dropped_"


def stage_summary(manifest: Manifest, reused: bool) -> str:
    """The page; shares are of what came in, in percent."""
    counts = manifest.counts
    num_in = counts.get("num_in", 0)
    handled = {name: n for name, n in counts.items() if not name.startswith(_DROPPED)}
    dropped = {name.removeprefix(_DROPPED): n for name, n in counts.items() if name.startswith(_DROPPED)}
    figures = {name: value for name, value in manifest.metrics.items() if isinstance(value, bool | int | float | str)}
    parts = [
        f"# {manifest.stage}: {_words(handled)}",
        "Reused: an earlier run had made it." if reused else "",
        _table("dropped because", "records", [(_spaced(why), _share(n, num_in)) for why, n in dropped.items()]),
        _table("figure", "value", [(_spaced(name), _number(value)) for name, value in figures.items()]),
        _table("setting", "value", [(name, _number(value)) for name, value in _flat(manifest.config)]),
        _table("input", "digest", manifest.inputs.items()),
        f"Artifact: `{manifest.uri}`, digest `{manifest.digest}`, made by version {manifest.code_version} at "
        f"{manifest.created_at[:19]}.",
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _words(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{n:,} {_spaced(name.removeprefix('num_'))}" for name, n in counts.items()) or "nothing counted"


def _spaced(name: str) -> str:
    return name.replace("_", " ")


def _share(n: int, num_in: int) -> str:
    return f"{n:,} ({100 * n / num_in:.1f} %)" if num_in else f"{n:,} (-)"


def _number(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _flat(config: Mapping[str, Any], start: str = "") -> Iterable[tuple[str, Any]]:
    """Nested settings as dotted names; what is None was left to a default that the data decides."""
    for name, value in config.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{start}{name}.")
        elif value is not None:
            yield f"{start}{name}", value


def _table(first: str, second: str, rows: Iterable[tuple[str, str]]) -> str:
    """A Markdown table; nothing without rows."""
    lines = [f"| {_cell(left)} | {_cell(right)} |" for left, right in rows]
    return "\n".join([f"| {first} | {second} |", "|---|---|", *lines]) if lines else ""


def _cell(text: str) -> str:
    """Text that cannot end its cell, its row, or become markup."""
    return " ".join(text.split()).replace("|", "\\|").replace("<", "&lt;").replace("`", "'")
