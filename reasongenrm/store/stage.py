"""The work of one stage, atomic and resumable: finished work is reused, begun work continues.

    <stage>/<key>/parts/NAME                    small objects written as the stage goes
    <stage>/<key>/checkpoints/STEP/...          a training checkpoint, whole once its own manifest is there
    <stage>/<key>/<digest>/FILE, manifest.json  the artifact, finished once the manifest is there

The key says what is asked (stage, config, inputs, version), the digest what came out. Two runs of the same key at the
same time write to two folders if their bytes differ, and both then continue with the same one of the two.
"""

import errno
import hashlib
import json
import shutil
from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from datetime import UTC, datetime
from fnmatch import fnmatch
from functools import cache
from pathlib import Path
from types import TracebackType
from typing import Any

from rich.console import Console

from reasongenrm import __version__
from reasongenrm.config import Section
from reasongenrm.errors import StoreError
from reasongenrm.records import Record
from reasongenrm.store.artifacts import (
    MANIFEST,
    ArtifactRef,
    FileEntry,
    Manifest,
    Store,
    digest_bytes,
    fetch,
    finished,
    sha256_file,
)
from reasongenrm.store.scratch import scratch_folder

_KEY_DIGITS = 16  # of 64: 2**32 different configs before two of a stage would share a key
_DIGEST_START = "sha256-"


class _Checkpoint(Record):
    """The manifest of a training checkpoint."""

    step: int
    num_processes: int
    files: tuple[FileEntry, ...]


def _keyless(config: Section) -> dict[str, Any]:
    """What of a section, and of the sections in it, is no part of a key, as `model_dump` excludes it: where the work is
    done, and newer fields at their defaults."""
    inner = {name: _keyless(value) for name, value in config if isinstance(value, Section)}
    kinds = type(config).model_fields
    unchanged = [name for name in config.newer if getattr(config, name) == kinds[name].get_default()]
    return {name: fields for name, fields in inner.items() if fields} | dict.fromkeys(
        (*config.placement, *unchanged), True
    )


class Stage:
    """A context around the work of one stage.

    with Stage(store, "select_reasons", config, {"prompts": prompts, "scored": scored}) as stage:
        if stage.done:
            return stage.done
        ...
        stage.add_bytes("examples.jsonl", data)
        return stage.finish(drops.counts())

    Args:
        store: where everything goes.
        name: the stage's name, a verb.
        config: its section; part of the key, but for `Section.placement` and `Section.newer`.
        inputs: by name, artifacts or content digests ("sha256:...") of raw input.
        extra: other things that belong in the key and the manifest (a variant's name).

    Attributes:
        done: the finished artifact, if there is one whose files are all there; None otherwise.
        work_dir: local scratch, removed at the end, also after an error.
    """

    def __init__(
        self,
        store: Store,
        name: str,
        config: Section,
        inputs: Mapping[str, ArtifactRef | str],
        extra: Mapping[str, Any] = {},
    ) -> None:
        self.store = store
        self.name = name
        overlap = extra.keys() & type(config).model_fields.keys()
        assert not overlap, f"{name}: {sorted(overlap)} belongs to the config"
        self.config = {**config.model_dump(mode="json", exclude=_keyless(config)), **extra}
        self.inputs = {name: ref if isinstance(ref, str) else ref.digest for name, ref in inputs.items()}
        self.input_uris = {name: ref.uri for name, ref in inputs.items() if isinstance(ref, ArtifactRef)}
        self.key = stage_key(name, self.config, self.inputs)
        self.folder = f"{name}/{self.key}"
        self._files: dict[str, Path] = {}

    def __enter__(self) -> "Stage":
        self.done = self.find_done()
        self._scratch = ExitStack()
        self.work_dir = self._scratch.enter_context(scratch_folder(self.name))
        if self.done:
            say(f"{self.name}: reused {self.done.uri}")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        free = shutil.disk_usage(self.work_dir).free
        self._scratch.close()
        if isinstance(error, OSError) and error.errno == errno.ENOSPC:
            raise StoreError(
                f"{self.name}: the disk of {self.work_dir.parent.parent} is full ({free >> 20:,} MiB were free): "
                f"{error}. Free some, or set TMPDIR to a folder on a larger disk, and run again; finished work is kept."
            ) from error

    def find_done(self) -> ArtifactRef | None:
        """The finished artifact of this key; of several (two runs at once, different bytes) everyone takes the same."""
        return next((found.ref() for found in finished(self.store, f"{self.folder}/{_DIGEST_START}")), None)

    def parts(self) -> dict[str, bytes]:
        """The parts that earlier, unfinished runs of this key left, by name, sorted."""
        start = f"{self.folder}/parts/"
        return {name.removeprefix(start): self.store.get_bytes(name) for name in self.store.list(start)}

    def put_part(self, name: str, data: bytes) -> None:
        """Keep a part; it is there whole or not at all, and replaces one of the same name."""
        self.store.put_bytes(f"{self.folder}/parts/{name}", data)

    def begin_checkpoint(self, step: int) -> None:
        """Drop what a killed run may have left of this step's checkpoint."""
        self.store.delete(self.store.list(self._checkpoint(step)))

    def put_checkpoint_files(self, step: int, folder: Path, entries: Iterable[FileEntry]) -> None:
        """Upload files of a checkpoint, maybe not all: each node of a training has its own part of them."""
        start = self._checkpoint(step)
        self.store.put_files({start + entry.path: folder / entry.path for entry in entries})

    def finish_checkpoint(self, step: int, entries: Iterable[FileEntry], num_processes: int) -> None:
        """Make a checkpoint whole, all of whose files (`entries`, of all nodes) are uploaded, and drop the older
        ones."""
        here = self._checkpoint(step)
        checkpoint = _Checkpoint(step=step, num_processes=num_processes, files=tuple(entries))
        self.store.put_bytes(here + MANIFEST, checkpoint.model_dump_json().encode())
        others = self.store.list(f"{self.folder}/checkpoints/")
        self.store.delete(name for name in others if not name.startswith(here))

    def latest_checkpoint(self, into: Path, num_processes: int | None = None) -> Path | None:
        """Fetch the newest whole checkpoint as `into`/checkpoint-STEP (the name the Trainer expects), verified.

        Only those of `num_processes` count, if given: with some kinds of sharding no other number can read them.
        """
        names = [name for name in self.store.list(f"{self.folder}/checkpoints/") if name.endswith(f"/{MANIFEST}")]
        for name in reversed(names):
            checkpoint = _Checkpoint.model_validate_json(self.store.get_bytes(name))
            if num_processes not in (None, checkpoint.num_processes):
                say(
                    f"{self.name}: the checkpoint of step {checkpoint.step} was written by {checkpoint.num_processes} "
                    f"process(es); with this sharding, {num_processes} cannot read it. To resume from it, stop now and "
                    "start again with as many"
                )
                continue
            start = name.removesuffix(MANIFEST)
            target = into / f"checkpoint-{checkpoint.step}"
            fetch(Store(self.store.uri_of(start)), checkpoint.files, target)
            say(f"{self.name}: resumes from step {checkpoint.step}")
            return target
        if names:
            say(f"{self.name}: starts from the beginning")
        return None

    def _checkpoint(self, step: int) -> str:
        return f"{self.folder}/checkpoints/{step:08d}/"

    def add_file(self, path: Path, name: str | None = None) -> None:
        """Add a file to the artifact, under its own name or another."""
        name = name or path.name
        assert name not in (MANIFEST, *self._files), f"{self.name} adds {name} twice"
        self._files[name] = path

    def add_bytes(self, name: str, data: bytes) -> None:
        """Add a file with this content to the artifact."""
        path = self.work_dir / "added" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
        self.add_file(path, name)

    def add_folder(self, path: Path) -> None:
        """Add every file below a folder to the artifact, under its path relative to the folder."""
        for name, file in _files_below(path).items():
            self.add_file(file, name)

    def finish(self, counts: Mapping[str, int], metrics: Mapping[str, Any] = {}) -> ArtifactRef:
        """Upload the files, write the manifest last, drop what was kept for resuming, and print the counts.

        Returns:
            The artifact; the one of another run that finished the same key earlier, if there is one.

        Raises:
            StoreError: the store refused or is full; nothing that looks finished is left.
        """
        ref = self.find_done()
        if ref is None:
            try:
                self._upload(dict(counts), dict(metrics))
            except StoreError:
                # Another run of this key may have finished, and cleaned up what we were writing.
                if self.find_done() is None:
                    raise
            ref = self.find_done()
            assert ref, f"{self.folder} has just been written"
        self._clean_up()
        for line in count_lines(ref.counts):
            say(f"{self.name}: {line}")
        say(f"{self.name}: wrote {ref.uri}")
        return ref

    def _clean_up(self) -> None:
        """Drop parts, checkpoints, and files that a killed run uploaded without ever writing their manifest."""
        names, start = self.store.list(f"{self.folder}/"), f"{self.folder}/{_DIGEST_START}"
        kept = tuple(name.removesuffix(MANIFEST) for name in names if fnmatch(name, f"{start}*/{MANIFEST}"))
        self.store.delete(name for name in names if not name.startswith(kept))

    def _upload(self, counts: dict[str, int], metrics: dict[str, Any]) -> None:
        entries = tuple(_entry(name, path) for name, path in sorted(self._files.items()))
        digest = content_digest(entries)
        folder = f"{self.folder}/{_DIGEST_START}{digest.removeprefix('sha256:')[:_KEY_DIGITS]}"
        manifest = Manifest(
            stage=self.name,
            key=self.key,
            digest=digest,
            created_at=datetime.now(UTC).isoformat(timespec="milliseconds"),
            files=entries,
            config=self.config,
            inputs=self.inputs,
            input_uris=self.input_uris,
            code_version=__version__,
            source_sha256=source_sha256(),
            counts=counts,
            metrics=metrics,
            uri=self.store.uri_of(folder),
        )
        self.store.put_files({f"{folder}/{name}": path for name, path in self._files.items()})
        self.store.put_bytes(f"{folder}/{MANIFEST}", manifest.model_dump_json(indent=2).encode())


def stage_key(name: str, config: Mapping[str, Any], inputs: Mapping[str, str]) -> str:
    """What is asked of a stage, as 16 hex digits: a hash of its name, config, inputs' digests and our version."""
    asked = {"stage": name, "config": config, "inputs": inputs, "version": __version__}
    canonical = json.dumps(asked, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)
    return hashlib.sha256(canonical.encode()).hexdigest()[:_KEY_DIGITS]


def content_digest(files: Iterable[FileEntry]) -> str:
    """What came out, as a content address: a hash of the sorted paths, sizes and SHA-256 sums."""
    lines = sorted(f"{entry.path}\0{entry.size}\0{entry.sha256}\n" for entry in files)
    return digest_bytes("".join(lines).encode())


@cache
def source_sha256() -> str:
    """SHA-256 over this package's source files: two manifests that differ in it were made by different code."""
    package = Path(__file__).parents[1]
    # An installed package also holds components/ and pipelines/, which wire stages and do none of their work.
    paths = {path.relative_to(package): path for path in sorted(package.rglob("*.py"))}
    ours = {name: path for name, path in paths.items() if name.parts[0] not in ("components", "pipelines")}
    lines = [f"{name}\0{sha256_file(path)}\n" for name, path in ours.items()]
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def count_lines(counts: Mapping[str, int]) -> list[str]:
    """What a stage took in and put out, then one line for each cause of dropping."""
    others = {name: n for name, n in counts.items() if not name.startswith("num_dropped_")}
    dropped = {name.removeprefix("num_dropped_"): n for name, n in counts.items() if name.startswith("num_dropped_")}
    first = ", ".join(f"{n:,} {name.removeprefix('num_').replace('_', ' ')}" for name, n in others.items())
    return [first or "nothing counted", *(f"dropped {n:,}: {cause.replace('_', ' ')}" for cause, n in dropped.items())]


def checkpoint_entries(folder: Path) -> tuple[FileEntry, ...]:
    """The files of a training checkpoint, or of the part of it that lies in this folder."""
    return tuple(_entry(name, path) for name, path in _files_below(folder).items())


def _files_below(folder: Path) -> dict[str, Path]:
    """Every file below a folder, by its path relative to the folder, sorted."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path for path in paths}


def _entry(name: str, path: Path) -> FileEntry:
    return FileEntry(path=name, size=path.stat().st_size, sha256=sha256_file(path))


def say(line: str) -> None:
    """One line about the work of a stage, for its log."""
    Console(stderr=True, highlight=False, markup=False, soft_wrap=True).print(line)
