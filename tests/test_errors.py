"""What pydantic finds wrong, in the words of our errors."""

from typing import Any

import pytest
from pydantic import BaseModel, ConfigDict, ValidationError

from reasongenrm.errors import InputError, StoreError, mistake_in, validated


class Turn(BaseModel):
    model_config = ConfigDict(extra="forbid")
    role: str
    text: str


class Talk(BaseModel):
    turns: str | list[Turn]


def error_of(kind: type[BaseModel], values: Any) -> ValidationError:
    with pytest.raises(ValidationError) as caught:
        kind.model_validate(values)
    return caught.value


def test_of_a_field_of_several_kinds_the_innermost_mistake_is_shown() -> None:
    mistake = mistake_in(error_of(Talk, {"turns": [{"role": "user"}]}))
    assert mistake == ("turns.0.text", "Field required, found role", "missing")
    assert str(mistake) == "turns.0.text: Field required, found role"


def test_mistake_of_a_whole_record_names_no_field() -> None:
    mistake = mistake_in(error_of(Turn, "Hi"))
    assert mistake.field is None
    assert str(mistake) == 'Input should be a valid dictionary, found "Hi"'


@pytest.mark.parametrize(
    ("found", "told"),
    [(None, "found null"), (1.5, "found 1.5"), ([1, 2], "found a list of 2"), ({"a": 1, "b": 2}, "found a, b")],
)
def test_what_was_found_is_told_in_few_words(found: Any, told: str) -> None:
    assert str(mistake_in(error_of(Turn, {"role": "user", "text": found}))).endswith(told)
    long = mistake_in(error_of(Turn, {"role": "user", "text": dict.fromkeys(map(str, range(1000)))})).problem
    assert len(long) < 150


def test_mistake_becomes_an_error_with_place_finding_and_expectation() -> None:
    with (
        pytest.raises(
            InputError, match=r"^talk\.json: text: Field required, found role; expected a turn\. Write it again\.$"
        ),
        validated("talk.json", "a turn. Write it again."),
    ):
        Turn.model_validate({"role": "user"})
    with pytest.raises(StoreError), validated("talk.json", "a turn.", StoreError):
        Turn.model_validate({})


def test_text_that_is_not_json_is_told_as_such() -> None:
    with pytest.raises(ValidationError) as caught:
        Turn.model_validate_json(b"<html>")
    assert str(mistake_in(caught.value)) == "not JSON: expected value at line 1 column 1"
