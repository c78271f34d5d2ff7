"""How a checkpoint wants to be asked."""

from pathlib import Path

import pytest

from reasongenrm.evaluation.judge_style import style_of
from reasongenrm.variants import JudgeStyle
from tests.tiny import FAMILIES, Family, tiny_tokenizer


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(("opening_role", "style"), [("reason", "reason"), ("assistant", "verdict"), (None, "plain")])
def test_checkpoint_is_asked_as_its_chat_template_says(
    tmp_path: Path, family: Family, opening_role: str | None, style: JudgeStyle
) -> None:
    from reasongenrm.data.chat import detect_family, install_template

    tokenizer = tiny_tokenizer(family)
    if opening_role is not None:
        install_template(tokenizer, detect_family(tokenizer), opening_role)  # type: ignore[arg-type]
    tokenizer.save_pretrained(tmp_path)
    assert style_of(tmp_path) == style


def test_checkpoint_without_a_template_file_is_asked_by_plain_chat(tmp_path: Path) -> None:
    assert style_of(tmp_path) == "plain"
