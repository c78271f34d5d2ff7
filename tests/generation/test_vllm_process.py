"""How tasks are shared out to replicas, which are simulated step by step."""

import multiprocessing
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from reasongenrm.generation.vllm_process import MAX_TAKEN, ReplicaPool
from reasongenrm.generation.vllm_replica import CAPACITY, MAX_NUM_SEQS, PromptBatch, PromptTask


class SimulatedReplica:
    """Decodes the first `MAX_NUM_SEQS` samples that were submitted, one token a step; a sample's seed says how many it
    has.

    Time passes in `receive` alone, so what is seen is the pool's policy. `num_decoded` is how many samples each step
    decoded.
    """

    def __init__(self) -> None:
        self.connection, self._far = multiprocessing.Pipe()
        self._far.send("there is always something to receive")
        self._left: dict[tuple[int, int], int] = {}
        self._missing: dict[int, int] = {}
        self._sizes: dict[int, int] = {}
        self.num_decoded: list[int] = []

    @property
    def num_under_way(self) -> int:
        return len(self._left)

    def submit(self, number: int, task: PromptBatch) -> None:
        seeds = [seed for prompt in task.prompts for seed in prompt.seeds]
        self._left |= {(number, place): seed for place, seed in enumerate(seeds)}
        self._missing[number] = self._sizes[number] = len(seeds)

    def receive(self) -> list[tuple[int, list[Any]]]:
        rows = list(self._left)[:MAX_NUM_SEQS]
        if rows:
            self.num_decoded.append(len(rows))
        whole = []
        for row in rows:
            self._left[row] -= 1
            if self._left[row] == 0:
                del self._left[row]
                self._missing[row[0]] -= 1
                if self._missing[row[0]] == 0:
                    whole.append((row[0], [row[0]] * self._sizes[row[0]]))
        return whole


def task(*lengths: int) -> PromptBatch:
    """One prompt, samples of so many tokens."""
    return PromptBatch([PromptTask([1], [0], list(lengths), max(lengths, default=1))] if lengths else [], 1.0, 1.0)


Pool = Callable[[int], ReplicaPool]


@pytest.fixture
def pool() -> Iterator[Pool]:
    made: list[SimulatedReplica] = []

    def simulated(count: int) -> ReplicaPool:
        made.extend(SimulatedReplica() for _ in range(count))
        return ReplicaPool(made)  # type: ignore[arg-type]

    yield simulated
    for replica in made:
        replica.connection.close()
        replica._far.close()


def test_no_place_is_empty_while_there_is_work_however_long_the_longest_sample_takes(pool: Pool) -> None:
    # 300 tasks of 16 samples, 1 to 50 tokens long; windows of 1,024 samples would wait for the 50th token of each.
    lengths = [[1 + (place * 7 + sample * 11) % 50 for sample in range(16)] for place in range(300)]
    pending = iter(lengths)
    busy = pool(1)
    taken = 0

    def tasks() -> Iterator[PromptBatch]:
        nonlocal taken
        for own in pending:
            taken += 1
            yield task(*own)

    results = list(busy.run(tasks()))
    (replica,) = busy.replicas
    assert [len(samples) for samples in results] == [16] * 300
    num_steps = len(replica.num_decoded)
    last_full = max(step for step in range(num_steps) if replica.num_decoded[step] == MAX_NUM_SEQS)
    assert set(replica.num_decoded[: last_full + 1]) == {MAX_NUM_SEQS}
    assert num_steps - last_full <= 50  # then it runs dry once
    assert taken == 300


def test_tasks_go_to_the_replica_with_least_under_way_and_come_back_in_order(pool: Pool) -> None:
    both = pool(2)
    # Long tasks first: replica 0 gets the first long one, replica 1 the second, then short ones fill up.
    results = list(both.run(task(*[40 if place < 2 else 1] * 4) for place in range(1000)))
    numbers = [samples[0] for samples in results]
    assert numbers == sorted(numbers)
    assert len(numbers) == 1000
    decoded = [sum(replica.num_decoded) for replica in both.replicas]
    assert sum(decoded) == 2 * 4 * 40 + 998 * 4
    assert min(decoded) > 0.4 * sum(decoded)


def test_samples_that_wait_for_an_earlier_task_are_bounded(pool: Pool) -> None:
    taken = yielded = most = 0

    def tasks() -> Iterator[PromptBatch]:
        nonlocal taken, most
        for place in range(2000):
            taken += 16
            most = max(most, taken - yielded)
            yield task(*([3000] + [1] * 15 if place == 0 else [1] * 16))

    for samples in pool(1).run(tasks()):
        yielded += len(samples)
    assert yielded == 32_000
    assert MAX_TAKEN <= most <= MAX_TAKEN + 2 * 16  # a task is never cut, and the next one is at hand


def test_tasks_without_a_prompt_keep_their_place(pool: Pool) -> None:
    assert [len(samples) for samples in pool(1).run([task(), task(3), task(), task()])] == [0, 1, 0, 0]


def test_samples_of_a_broken_off_run_do_not_reach_the_next(pool: Pool) -> None:
    one = pool(1)
    first = one.run(task(*[1 + place % 9] * 16) for place in range(1000))
    next(first)
    first.close()
    assert one.replicas[0].num_under_way > CAPACITY - 16  # all of it is in the way
    assert [len(samples) for samples in one.run([task(1, 1), task(1)])] == [2, 1]
