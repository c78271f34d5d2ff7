"""Stages, killed and repeated: what is done is found again, what was begun goes on, and nothing is there twice."""

import errno
import hashlib
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from reasongenrm.config import DistillConfig, EngineConfig, Section, SelectConfig
from reasongenrm.errors import StoreError
from reasongenrm.store.artifacts import (
    ArtifactRef,
    Store,
    digest_bytes,
    download,
    list_artifacts,
    open_artifact,
    read_file,
)
from reasongenrm.store.stage import Stage, checkpoint_entries, count_lines, source_sha256, stage_key

INPUTS = {"prompts": digest_bytes(b"prompts")}

# A stage that handles six batches, kept as parts, and is killed when it has kept as many as the second argument says;
# with
# "manifest" instead of a number it is killed when all files are up and only the manifest is missing.
KILLED = """
import os, signal, sys
from reasongenrm.config import Section, SelectConfig
from reasongenrm.store.stage import Stage
from reasongenrm.store.artifacts import Store, digest_bytes

class KilledStore(Store):
    def put_bytes(self, name, data):
        if sys.argv[2] == "manifest" and name.endswith("manifest.json"):
            os.kill(os.getpid(), signal.SIGKILL)
        super().put_bytes(name, data)

with Stage(KilledStore(sys.argv[1]), "select_reasons", SelectConfig(), {"prompts": digest_bytes(b"prompts")}) as stage:
    done = stage.parts()
    for number in range(6):
        if f"{number:03}" in done:
            print("had", number, flush=True)
            continue
        if str(number) == sys.argv[2]:
            os.kill(os.getpid(), signal.SIGKILL)
        stage.put_part(f"{number:03}", f"batch {number}\\n".encode())
    stage.add_bytes("all.txt", b"".join(stage.parts().values()))
    print(stage.finish({"num_in": 6, "num_out": 6}).uri)
"""


def _run(store: Store, until: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", KILLED, store.uri, until], capture_output=True, text=True, check=False)


def _new(store: Store, **kwargs: object) -> Stage:
    return Stage(store, "select_reasons", SelectConfig(), INPUTS, **kwargs)  # type: ignore[arg-type]


def _finish(store: Store, data: bytes = b"data") -> ArtifactRef:
    with _new(store) as stage:
        stage.add_bytes("examples.jsonl", data)
        return stage.finish({"num_in": 1, "num_out": 1})


def test_killed_stage_goes_on_from_its_parts_and_leaves_nothing_twice(store: Store) -> None:
    first = _run(store, "2")
    assert first.returncode == -signal.SIGKILL
    key = _new(store).key
    assert store.list() == [f"select_reasons/{key}/parts/{name}" for name in ("000", "001")]
    assert list_artifacts(store) == []
    assert _run(store, "4").stdout.split("\n")[:-1] == ["had 0", "had 1"]

    last = _run(store, "never")
    assert last.stdout.split("\n")[:-2] == ["had 0", "had 1", "had 2", "had 3"]
    (manifest,) = list_artifacts(store)
    assert read_file(manifest.ref(), "all.txt").decode() == "".join(f"batch {number}\n" for number in range(6))
    assert store.list() == [
        manifest.uri.removeprefix(store.uri + "/") + f"/{name}" for name in ("all.txt", "manifest.json")
    ]


def test_stage_killed_before_its_manifest_left_nothing_that_looks_finished(store: Store) -> None:
    assert _run(store, "manifest").returncode == -signal.SIGKILL
    assert any(name.endswith("/all.txt") for name in store.list())
    assert list_artifacts(store) == []
    with _new(store) as stage:
        assert stage.done is None
        assert len(stage.parts()) == 6
    ref = _finish(store, b"other bytes than the killed run's")
    assert store.list() == [
        ref.uri.removeprefix(store.uri + "/") + f"/{name}" for name in ("examples.jsonl", "manifest.json")
    ]


def test_finished_stage_is_found_again_and_says_so(store: Store, capsys: pytest.CaptureFixture[str]) -> None:
    ref = _finish(store)
    capsys.readouterr()
    with _new(store) as stage:
        assert stage.done == ref
    assert capsys.readouterr().err == f"select_reasons: reused {ref.uri}\n"


@pytest.mark.parametrize("damage", ["gone", "cut off"])
def test_finished_stage_whose_file_is_gone_or_cut_off_is_done_again(store: Store, damage: str) -> None:
    ref = _finish(store)
    folder = Store(ref.uri)
    if damage == "gone":
        folder.delete(["examples.jsonl"])
    else:
        folder.put_bytes("examples.jsonl", b"dat")
    with _new(store) as stage:
        assert stage.done is None
    assert list_artifacts(store) == []
    assert _finish(store) == ref
    assert read_file(ref, "examples.jsonl") == b"data"


def test_key_is_a_hash_of_everything_that_is_asked() -> None:
    config = {"min_score": 0.1}
    text = '{"config":{"min_score":0.1},"inputs":{"a":"sha256:00"},"stage":"select_reasons","version":"0.1.0"}'
    key = stage_key("select_reasons", config, {"a": "sha256:00"})
    assert key == hashlib.sha256(text.encode()).hexdigest()[:16]
    assert key != stage_key("score_reasons", config, {"a": "sha256:00"})
    assert key != stage_key("select_reasons", {"min_score": 0.2}, {"a": "sha256:00"})
    assert key != stage_key("select_reasons", config, {"a": "sha256:01"})
    assert key != stage_key("select_reasons", config, {"b": "sha256:00"})


def test_same_content_at_another_address_is_the_same_input(store: Store) -> None:
    ref = _finish(store)
    moved = ref.model_copy(update={"uri": "s3://elsewhere/folder"})
    keys = {Stage(store, "train_sft", SelectConfig(), {"examples": given}).key for given in (ref, moved, ref.digest)}
    assert len(keys) == 1


def test_variant_belongs_to_the_key_and_to_the_manifest(store: Store) -> None:
    with _new(store, extra={"variant": "genrm"}) as stage:
        stage.add_bytes("file", b"")
        manifest = open_artifact(stage.finish({}))
    assert manifest.key != _new(store, extra={"variant": "sft"}).key
    assert manifest.config["variant"] == "genrm"
    assert manifest.config["min_score"] == 0.1
    assert manifest.inputs == INPUTS
    assert manifest.source_sha256 == source_sha256()
    with pytest.raises(AssertionError, match="min_score"):
        _new(store, extra={"min_score": 1})


def test_two_runs_at_once_with_different_bytes_end_with_the_same_whole_artifact(store: Store, tmp_path: Path) -> None:
    with _new(store) as slow, _new(store) as quick:
        assert slow.done is None
        assert quick.done is None
        slow.put_part("000", b"of the slow one")
        quick.add_bytes("examples.jsonl", b"quick")
        ref = quick.finish({"num_in": 1, "num_out": 1})
        slow.add_bytes("examples.jsonl", b"slow")
        assert slow.finish({"num_in": 1, "num_out": 1}) == ref
    assert (download(ref, tmp_path) / "examples.jsonl").read_bytes() == b"quick"
    assert store.list("select_reasons/") == [
        ref.uri.removeprefix(store.uri + "/") + f"/{name}" for name in ("examples.jsonl", "manifest.json")
    ]


def test_run_whose_files_were_cleaned_up_by_a_quicker_one_takes_the_quicker_ones_artifact(store: Store) -> None:
    class Overtaken(Store):
        """Between the upload of the files and that of the manifest another run finishes the same key."""

        def put_bytes(self, name: str, data: bytes) -> None:
            if name.endswith("manifest.json"):
                refs.append(_finish(store, b"quick"))
            super().put_bytes(name, data)

    refs: list[ArtifactRef] = []
    with _new(Overtaken(store.uri)) as stage:
        stage.add_bytes("examples.jsonl", b"slow")
        ref = stage.finish({"num_in": 1, "num_out": 1})
    assert refs == [ref]
    assert read_file(ref, "examples.jsonl") == b"quick"


def _keep(stage: Stage, step: int, folder: Path) -> None:
    """As one process does."""
    entries = checkpoint_entries(folder)
    stage.begin_checkpoint(step)
    stage.put_checkpoint_files(step, folder, entries)
    stage.finish_checkpoint(step, entries, num_processes=1)


def test_only_the_newest_whole_checkpoint_is_kept_and_comes_back_under_the_trainers_name(
    store: Store, tmp_path: Path
) -> None:
    saved = tmp_path / "saved"
    (saved / "sub").mkdir(parents=True)
    with _new(store) as stage:
        assert stage.latest_checkpoint(tmp_path) is None
        for step in (9, 10):
            (saved / "sub/weights").write_bytes(b"weights of step %d" % step)
            _keep(stage, step, saved)
        start = f"{stage.folder}/checkpoints/"
        assert store.list(start) == [f"{start}00000010/{name}" for name in ("manifest.json", "sub/weights")]
        store.put_bytes(f"{start}00000011/sub/weights", b"cut off before its manif")

        folder = stage.latest_checkpoint(tmp_path / "back")
        assert folder == tmp_path / "back/checkpoint-10"
        assert [(path.name, path.read_bytes()) for path in folder.rglob("w*")] == [("weights", b"weights of step 10")]

        store.put_bytes(f"{start}00000010/sub/weights", b"weights of step 1x")
        with pytest.raises(StoreError, match=r"00000010/sub/weights: damaged"):
            stage.latest_checkpoint(tmp_path / "damaged")


def test_checkpoints_and_parts_are_gone_when_the_stage_is_finished(store: Store, tmp_path: Path) -> None:
    (tmp_path / "weights").write_bytes(b"weights")
    with _new(store) as stage:
        stage.put_part("000", b"")
        _keep(stage, 1, tmp_path)
        stage.add_folder(tmp_path)
        ref = stage.finish({"num_in": 1, "num_out": 1})
    assert store.list() == [ref.uri.removeprefix(store.uri + "/") + f"/{name}" for name in ("manifest.json", "weights")]


def test_scratch_folder_is_removed_also_after_an_error(store: Store) -> None:
    stage = _new(store)
    with pytest.raises(ZeroDivisionError), stage:
        print(1 / len([*stage.work_dir.iterdir()]))  # noqa: T201 - empty, hence the error
    assert not stage.work_dir.exists()


def test_full_scratch_disk_is_one_clear_error(store: Store) -> None:
    with (
        pytest.raises(
            StoreError, match=r"select_reasons: the disk of \S+ is full \([\d,]+ MiB were free\).*set TMPDIR"
        ),
        _new(store),
        Path("/dev/full").open("wb", buffering=0) as file,
    ):
        file.write(b"x")


def test_full_disk_is_told_from_other_errors_of_the_disk(store: Store) -> None:
    with pytest.raises(FileNotFoundError), _new(store):
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))


def test_every_cause_of_dropping_gets_a_line(store: Store, capsys: pytest.CaptureFixture[str]) -> None:
    counts = {"num_in": 1200, "num_out": 1190, "num_dropped_too_long": 7, "num_dropped_no_answer": 3}
    with _new(store) as stage:
        stage.add_bytes("file", b"")
        ref = stage.finish(counts)
    assert capsys.readouterr().err.splitlines() == [
        "select_reasons: 1,200 in, 1,190 out",
        "select_reasons: dropped 7: too long",
        "select_reasons: dropped 3: no answer",
        f"select_reasons: wrote {ref.uri}",
    ]
    assert ref.counts == counts
    assert count_lines({}) == ["nothing counted"]


def test_metrics_travel_with_the_reference(store: Store, tmp_path: Path) -> None:
    with _new(store) as stage:
        stage.add_bytes("file", b"")
        ref = stage.finish({}, {"accuracy": 0.75, "winner": "dpo", "passed": True})
    ref.write(tmp_path / "ref.json")
    assert json.loads((tmp_path / "ref.json").read_text())["metrics"] == {
        "accuracy": 0.75,
        "winner": "dpo",
        "passed": True,
    }
    with _new(store) as again:
        assert again.done == ref


class Placed(Section):
    """A section one field of which says only where the work is done."""

    placement = frozenset({"num_pods"})

    limit: int = 1
    num_pods: int = 1


def test_where_a_stage_works_is_no_part_of_what_is_asked(store: Store) -> None:
    def key(config: Placed) -> str:
        return Stage(store, "prepare_pairs", config, {}).key

    assert key(Placed()) == key(Placed(num_pods=8))
    assert key(Placed()) != key(Placed(limit=2))


def test_where_an_engine_works_is_no_part_of_what_its_stage_is_asked(store: Store) -> None:
    def key(**engine: Any) -> str:
        return Stage(store, "distill_reasons", DistillConfig(engine=EngineConfig(**engine)), {}).key

    assert key() == key(data_parallel_size=8)
    assert key() == key(endpoint={"max_failed_fraction": 0.5})
    assert key() != key(batch_size=8)


def test_a_newer_field_at_its_default_is_no_part_of_what_is_asked(store: Store) -> None:
    """The key of a distillation with all defaults is that of the release before `keep_thoughts`."""
    stage = Stage(store, "distill_reasons", DistillConfig(), {})
    assert "keep_thoughts" not in stage.config
    assert Stage(store, "distill_reasons", DistillConfig(keep_thoughts=True), {}).config["keep_thoughts"] is True
    assert stage.key == "04d581b326f6d620"
