"""Every error that a user can meet, in one tree, with its exit code.

    ReasonGenRMError              anything the user, the data or the surroundings can cause; exit code 1
    |- InputError                 a file, a row or a model folder is not what was expected; exit code 2
    |- ConfigError                a config file or an option is wrong; exit code 2
    |- StoreError                 the object store refused, failed, or holds something damaged; exit code 3
    |- EngineError                a generation engine or endpoint failed for good; exit code 4
    |- TrainingError              a loss became NaN or infinite, or nothing was left to train on; exit code 5
    |- EmptyStageError            a stage dropped every record; exit code 6
    `- ClusterError               Kubernetes or Kubeflow refused, failed, or lacks what was expected; exit code 7

A message stands alone: where, what was found, what was expected, what to do.
"""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:  # every command's help imports this module, and pydantic takes a quarter of a second
    from pydantic import ValidationError


class ReasonGenRMError(Exception):
    """Base of all errors that end a command with a message instead of a traceback."""

    exit_code = 1


class InputError(ReasonGenRMError, ValueError):
    """Bad input data: names the file, the row, what was expected and what to do."""

    exit_code = 2


class ConfigError(ReasonGenRMError, ValueError):
    """A configuration that cannot be used."""

    exit_code = 2


class StoreError(ReasonGenRMError):
    """The object store refused, failed, or holds an artifact whose bytes do not match its manifest."""

    exit_code = 3


class EngineError(ReasonGenRMError):
    """A generation engine failed after its retries."""

    exit_code = 4


class TrainingError(ReasonGenRMError):
    """Training cannot go on."""

    exit_code = 5


class EmptyStageError(ReasonGenRMError):
    """A stage has nothing left to hand on; the message counts the causes."""

    exit_code = 6


class ClusterError(ReasonGenRMError):
    """The Kubernetes API, KServe, Kubeflow Trainer or Kubeflow Pipelines refused or failed."""

    exit_code = 7


class Mistake(NamedTuple):
    """One thing that pydantic found wrong.

    Attributes:
        field: dotted path of the field; None: the whole record.
        problem: pydantic's sentence, without a full stop, and what was found.
        kind: pydantic's name of the problem, such as "missing" or "json_invalid".
    """

    field: str | None
    problem: str
    kind: str

    def __str__(self) -> str:
        return f"{self.field}: {self.problem}" if self.field else self.problem


def mistake_in(error: "ValidationError") -> Mistake:
    """The mistake to show of several: the innermost, which says most where a field may be of several kinds."""
    details = error.errors(include_url=False)
    detail = max(details, key=lambda one: len(one["loc"]))
    kind = detail["type"]
    problem = detail["msg"].removeprefix("Value error, ").partition(" or instance of ")[0]
    problem = problem.replace("Invalid JSON", "not JSON")
    if kind not in ("extra_forbidden", "json_invalid", "value_error"):
        problem += f", found {_short(detail['input'])}"
    # pydantic also names which of a field's kinds it tried: "turns.list[Turn].0", "id.int".
    path = [str(part) for part in detail["loc"] if part not in ("str", "int") and "[" not in str(part)]
    return Mistake(".".join(path) or None, problem, kind)


def _short(found: Any) -> str:
    """A value in few words: of an object its keys, of a list its length, of anything else how JSON writes it."""
    if isinstance(found, Mapping):
        text = ", ".join(map(str, found)) or "an empty object"
    elif isinstance(found, list | tuple):
        text = f"a list of {len(found)}"
    else:
        text = json.dumps(found, default=str)
    return text if len(text) <= 100 else f"{text[:97]}..."


@contextmanager
def validated(where: str, expected: str, raises: type[ReasonGenRMError] = InputError) -> Iterator[None]:
    """Turn what pydantic finds wrong within the context into an error of ours.

    Args:
        where: what is read, such as "prompts.jsonl line 3".
        expected: what should be there, and what to do; ends with a full stop.
        raises: class of the error.

    Raises:
        ReasonGenRMError: of the class `raises`.
    """
    from pydantic import ValidationError

    try:
        yield
    except ValidationError as error:
        raise raises(f"{where}: {mistake_in(error)}; expected {expected}") from error
