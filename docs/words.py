"""Finds phrases that a native reader stumbles over: `make lint` runs this check.

docs/words.txt has them, one per line: a regular expression, two spaces or more, what to write instead.
"""

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
WORDS = "docs/words.txt"
SCOPE = [
    "*.md",
    "*.py",
    "*.yaml",
    "*.j2",
    "*.sh",
    "*.css",
    "Makefile",
    "**/Dockerfile",
    "pyproject.toml",
    ":!tests",
    ":!pipelines/compiled",
]


def phrases(text: str) -> list[tuple[re.Pattern[str], str]]:
    """(what to find, what to write instead). A blank of a phrase is also the end of a line, with or without a "#"."""
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    pairs = [re.split(r" {2,}", line, maxsplit=1) for line in lines]
    return [(re.compile(found.replace(" ", r"[\s#]+"), re.IGNORECASE), instead) for found, instead in pairs]


def stumbles(name: str, text: str, known: list[tuple[re.Pattern[str], str]]) -> list[str]:
    """One message for each phrase that `text` has, in its order."""
    found = [(match.start(), match[0], instead) for pattern, instead in known for match in pattern.finditer(text)]
    return [
        f"{name}:{text.count(chr(10), 0, start) + 1}: '{' '.join(phrase.split())}'; write: {instead}"
        for start, phrase, instead in sorted(found)
    ]


def main() -> None:
    """Check every file of SCOPE that git knows; exit code 1 and one line for each phrase found."""
    names = subprocess.run(["git", "ls-files", "--", *SCOPE], cwd=ROOT, check=True, capture_output=True, text=True)
    known = phrases((ROOT / WORDS).read_text(encoding="utf-8"))
    found = [
        message
        for name in names.stdout.split()
        for message in stumbles(name, (ROOT / name).read_text(encoding="utf-8"), known)
    ]
    sys.exit("\n".join(found) or None)


if __name__ == "__main__":
    main()
