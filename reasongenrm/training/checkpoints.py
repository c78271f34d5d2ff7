"""Training checkpoints of one or more processes, on one or more nodes, in the store.

A node's disk holds what its own processes wrote: with sharding, a part that no other has. So the first process of every
node uploads its node's files, and once all have, the first process of all writes the manifest that lists them.
"""

import shutil
from pathlib import Path

from accelerate import PartialState
from accelerate.utils import gather_object

from reasongenrm.store.artifacts import FileEntry
from reasongenrm.store.stage import Stage, checkpoint_entries


def keep_checkpoint(stage: Stage, step: int, folder: Path) -> None:
    """Move a checkpoint from the nodes' disks into the store; every process calls this.

    Args:
        folder: where the processes of this node have written it. It is gone afterwards.
    """
    state = PartialState()
    state.wait_for_everyone()
    if state.is_local_main_process:
        (folder / "training_args.bin").unlink(missing_ok=True)  # a pickle that nothing reads
    if state.is_main_process:
        stage.begin_checkpoint(step)
    mine = checkpoint_entries(folder) if state.is_local_main_process else ()
    # Gathering waits for all, so that nothing is uploaded before the first process has made room.
    owned = first_owners(gather_object([(state.process_index, mine)]))
    if state.is_local_main_process:
        ours = [entry for rank, entry in owned.values() if rank == state.process_index]
        stage.put_checkpoint_files(step, folder, ours)
    state.wait_for_everyone()
    if state.is_main_process:
        entries = sorted((entry for _, entry in owned.values()), key=lambda entry: entry.path)
        stage.finish_checkpoint(step, entries, state.num_processes)
    if state.is_local_main_process:
        shutil.rmtree(folder)


def first_owners(found: list[tuple[int, tuple[FileEntry, ...]]]) -> dict[str, tuple[int, FileEntry]]:
    """Who uploads which file: of several nodes that have one of the same name, the first.

    Args:
        found: for each process in order, its rank and the files of its node (none, unless it is its node's first).
    """
    # From the last to the first, which so has the last word.
    return {entry.path: (rank, entry) for rank, entries in reversed(found) for entry in entries}
