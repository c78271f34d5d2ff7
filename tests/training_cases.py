"""Small real inputs for the training tests: a tiny model, examples and preferences, as artifacts in a store."""

from pathlib import Path

from reasongenrm.config import Section
from reasongenrm.records import JudgePrompt, Message, Preference, TrainingExample, Verdict, dump_records
from reasongenrm.store.artifacts import ArtifactRef, FileEntry, Store, sha256_file
from reasongenrm.store.stage import Stage, content_digest
from tests.tiny import Family, tiny_checkpoint


class NoConfig(Section):
    """The inputs below depend on no setting."""


def judge_prompt_record(number: int) -> JudgePrompt:
    """A judge prompt whose length differs from its neighbours'."""
    label: Verdict = "[[A]]" if number % 2 == 0 else "[[B]]"
    return JudgePrompt(
        prompt_id=f"p{number}",
        pair_id=f"p{number}",
        question=(Message(role="user", content=f"Name {number} colours." + " Please." * (number % 5)),),
        answer_a="red " * (number % 3 + 1),
        answer_b="blue " * (number % 4 + 1),
        label=label,
    )


def training_examples(num: int) -> list[TrainingExample]:
    """Examples with reasons of different lengths."""
    prompts = [judge_prompt_record(number) for number in range(num)]
    return [
        TrainingExample(prompt=prompt, reason="The answer fits. " * (number % 3 + 1), verdict=prompt.label)
        for number, prompt in enumerate(prompts)
    ]


def preferences(num: int) -> list[Preference]:
    """Pairs of a right and a wrong reason."""
    return [
        Preference(
            prompt=judge_prompt_record(number),
            chosen="The colours are named. " * (number % 3 + 1),
            chosen_verdict="[[A]]",
            chosen_score=0.4,
            rejected="It is short. " * (number % 2 + 1),
            rejected_verdict="[[B]]",
            rejected_score=-0.4,
        )
        for number in range(num)
    ]


def put_model(store: Store, folder: Path, family: Family = "chatml", opening_role: "str | None" = None) -> ArtifactRef:
    """A tiny model as an artifact."""
    return put_folder(store, tiny_checkpoint(folder, family, opening_role=opening_role))  # type: ignore[arg-type]


def put_folder(store: Store, folder: Path) -> ArtifactRef:
    """A folder as an artifact, as import_model writes it."""
    with Stage(store, "import_model", NoConfig(), {"model": _digest(folder)}) as stage:
        stage.add_folder(folder)
        return stage.finish({})


def put_records(
    store: Store, stage_name: str, name: str, records: list[TrainingExample] | list[Preference]
) -> ArtifactRef:
    """Records as an artifact with one file."""
    with Stage(store, stage_name, NoConfig(), {}, {"num": len(records)}) as stage:
        stage.add_bytes(name, dump_records(records))
        return stage.finish({"num_out": len(records)})


def _digest(folder: Path) -> str:
    return content_digest(
        FileEntry(path=file.name, size=file.stat().st_size, sha256=sha256_file(file)) for file in folder.iterdir()
    )
