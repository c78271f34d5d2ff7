"""How a checkpoint wants to be asked, by its chat template."""

import re
from pathlib import Path

from reasongenrm.variants import JudgeStyle

TEMPLATE = "chat_template.jinja"
_OPENING = re.compile(
    r'set opening_role = opening_role \| default\("(reason|assistant)"\)'
)  # in chat_templates/*.jinja


def style_of(folder: Path) -> JudgeStyle:
    """How a checkpoint wants to be asked, by its chat template: "plain" if the template is not ours."""
    path = folder / TEMPLATE
    opening = _OPENING.search(path.read_text(encoding="utf-8")) if path.is_file() else None
    if opening is None:
        return "plain"
    return "reason" if opening[1] == "reason" else "verdict"
