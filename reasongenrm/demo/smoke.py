"""The inputs of a cluster's smoke run, and what its judge must answer.

`python -m reasongenrm.demo.smoke write s3://BUCKET/PREFIX` puts model/ (tiny, random weights), preferences.jsonl and
benchmark.jsonl (the demo's) there, or into a folder. The run that follows (pipelines/configs/smoke.yaml) goes through
every stage in minutes on two CPU cores and needs neither a hub nor a network. It shows that the stages, the store and
the cluster work together; the judge that it makes is worthless, so `check COMPLETION JUDGMENT` looks at the form of its
answers alone.
"""

import json
import sys
import tempfile
from pathlib import Path

from reasongenrm.demo.formats import write_demo_data
from reasongenrm.demo.tiny import tiny_checkpoint
from reasongenrm.errors import InputError, ReasonGenRMError, validated
from reasongenrm.generation.chat_completions import read_completion
from reasongenrm.judge.api import PairwiseResponse
from reasongenrm.store.artifacts import Store

MODEL = "model"  # the folder's name below the prefix; the two files keep the demo's names


def write_smoke_inputs(destination: str) -> list[str]:
    """Write the model and the data.

    Args:
        destination: s3://bucket/prefix (credentials and endpoint from the AWS variables), or a local folder.

    Returns:
        Where they are: model, preferences, benchmark.

    Raises:
        ConfigError: the URI names no bucket.
        StoreError: the store refused or failed.
    """
    if not destination.startswith("s3://"):
        folder = Path(destination)
        model = tiny_checkpoint(folder / MODEL, "chatml")
        return [str(model), *(str(path) for path in write_demo_data(folder))]
    store = Store(destination)
    store.check()
    with tempfile.TemporaryDirectory(prefix="reasongenrm-smoke-") as made:
        folder = Path(made)
        names = [Path(path).relative_to(folder).as_posix() for path in write_smoke_inputs(made)]
        store.put_files({path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if path.is_file()})
    return [store.uri_of(name) for name in names]


def check_completion(text: str) -> str:
    """The assistant's text in an endpoint's answer to a chat request; "" if the model ended at once.

    Raises:
        InputError: it is no chat completion.
    """
    try:
        completion = read_completion(text)
    except ValueError as error:
        raise InputError(f"the endpoint's answer is no chat completion ({error}): {text[:300]!r}.") from error
    is_whole = completion.finish_reason in ("stop", "length") and completion.num_output_tokens > 0
    if not is_whole or json.loads(text).get("object") != "chat.completion":
        raise InputError(f"the endpoint's answer is no whole chat completion: {text[:300]!r}.")
    return completion.content


def check_judgment(text: str) -> PairwiseResponse:
    """Read what `reasongenrm judge --json` printed: a reason in both orders; the verdict may be missing.

    Raises:
        InputError: it is no judgment, or one without a reason.
    """
    with validated("what the command printed is no judgment", f"an answer of /v1/pairwise, found {text[:300]!r}."):
        judgment = PairwiseResponse.model_validate_json(text)
    for found in judgment.judgments:
        if not (found.reason or "").strip():
            raise InputError(f"the judgment in the order '{found.order}' has no reason: {text[:300]!r}.")
    return judgment


def main(arguments: list[str]) -> None:
    """The command; prints what it wrote or found."""
    match arguments:
        case ["write", destination]:
            found = write_smoke_inputs(destination)
        case ["check", completion, judgment]:
            content = check_completion(Path(completion).read_text(encoding="utf-8"))
            judged = check_judgment(Path(judgment).read_text(encoding="utf-8"))
            found = [f"chat completion: {content!r}"]
            found += [f"reason ({one.order}): {one.reason!r}, preferred: {one.preferred}" for one in judged.judgments]
        case _:
            sys.exit(
                "usage: python -m reasongenrm.demo.smoke write s3://BUCKET/PREFIX | check COMPLETION.json JUDGMENT.json"
            )
    print("\n".join(found))  # noqa: T201 - the command's output


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except ReasonGenRMError as error:
        sys.exit(f"smoke: {error}")
