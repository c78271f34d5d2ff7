"""Synthetic work of a shape, seeded: rows to train on and reasons to score, of random tokens with lengths like real
ones.

Every way of a part gets the same rows in the same order, so that step k is the same work for all of them.
"""

from array import array
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from benchmarks.shapes import Lengths, Shape
from reasongenrm.config import SFTConfig
from reasongenrm.packing.batches import draw_order
from reasongenrm.packing.trees import IGNORED
from reasongenrm.planning.measurements import Workload
from reasongenrm.reasons.candidates import Candidate, Row
from reasongenrm.records import Reason

Columns = dict[str, list[list[int]]]

SIGMA = 0.6  # of the logarithm of a length
SAMPLES = 16  # reasons of a scored prompt
BRIDGE_TOKENS, VERDICT_TOKENS = 5, 5


@dataclass(frozen=True)
class Amount:
    """What one step does.

    Attributes:
        tokens: that count as useful: of the plain method in training; a prompt once in scoring.
        examples: SFT examples, DPO pairs, or reasons.
        work: the same as `reasongenrm plan` counts it.
    """

    tokens: int
    examples: int
    work: Workload

    def __add__(self, other: "Amount") -> "Amount":
        return Amount(self.tokens + other.tokens, self.examples + other.examples, self.work + other.work)


class Draw:
    """Random tokens and lengths of one seed."""

    def __init__(self, shape: Shape, seed: int) -> None:
        self._rng = np.random.default_rng(seed)
        self._vocab_size = shape.model.vocab_size

    def lengths(self, median: int, num: int, shortest: int, longest: int) -> list[int]:
        """Log-normal round `median`, cut to [shortest, longest], shape (num,)."""
        drawn = self._rng.lognormal(np.log(median), SIGMA, num).round().astype(int)
        return [int(length) for length in drawn.clip(shortest, longest)]

    def tokens(self, num: int) -> list[int]:
        """Shape (num,), any token of the vocabulary."""
        return [int(token) for token in self._rng.integers(0, self._vocab_size, num)]

    def fraction(self) -> float:
        """Between 0.3 and 0.7."""
        return float(self._rng.uniform(0.3, 0.7))


def sft_columns(shape: Shape, num: int, *, seed: int = 0) -> Columns:
    """SFT examples: input_ids, and labels that leave a prompt of 30 to 70 % out."""
    draw = Draw(shape, seed)
    columns: Columns = {"input_ids": [], "labels": []}
    for length in draw.lengths(shape.lengths.row, num, _shortest(shape.lengths), shape.lengths.longest):
        ids = draw.tokens(length)
        num_prompt = max(1, round(length * draw.fraction()))
        columns["input_ids"].append(ids)
        columns["labels"].append([IGNORED] * num_prompt + ids[num_prompt:])
    return columns


def dpo_columns(shape: Shape, num: int, *, seed: int = 0) -> Columns:
    """Pairs: prompt_ids, chosen_ids, rejected_ids."""
    draw, lengths = Draw(shape, seed), shape.lengths
    shortest = _shortest(lengths)
    prompts = draw.lengths(lengths.dpo_prompt, num, shortest, lengths.longest * 3 // 4)
    columns: Columns = {"prompt_ids": [draw.tokens(length) for length in prompts]}
    for name in ("chosen_ids", "rejected_ids"):
        reasons = draw.lengths(lengths.dpo_reason, num, shortest // 2, lengths.longest // 4)
        columns[name] = [draw.tokens(length) for length in reasons]
    return columns


def sft_amounts(columns: Columns, examples: int) -> list[Amount]:
    """The work of each step that trains on `examples` rows in their order."""
    amounts = []
    for at in range(0, len(columns["labels"]), examples):
        labels = columns["labels"][at : at + examples]
        num_prompt = sum(row.count(IGNORED) for row in labels)
        num_reason = sum(map(len, labels)) - num_prompt
        work = Workload(num_prompts=examples, prompt_tokens=num_prompt, num_reasons=examples, reason_tokens=num_reason)
        amounts.append(Amount(num_prompt + num_reason, examples, work))
    return amounts


def dpo_amounts(columns: Columns, pairs: int) -> list[Amount]:
    """The same for pairs; a prompt's tokens are two times among `tokens`, as the plain method computes them."""
    amounts = []
    for at in range(0, len(columns["prompt_ids"]), pairs):
        num_prompt, chosen, rejected = (
            sum(map(len, columns[name][at : at + pairs])) for name in ("prompt_ids", "chosen_ids", "rejected_ids")
        )
        work = Workload(
            num_prompts=pairs,
            prompt_tokens=num_prompt,
            num_reasons=2 * pairs,
            reason_tokens=chosen + rejected,
        )
        amounts.append(Amount(2 * num_prompt + chosen + rejected, pairs, work))
    return amounts


@dataclass(frozen=True)
class TrainingWork:
    """Rows, and the steps that train on them.

    Attributes:
        order: row numbers, `batch_size` after `batch_size`, as ours draws them: shuffled again in every epoch.
        lengths: tokens of each row as ours counts them, a shared prompt once.
        amounts: of every step.
    """

    columns: Columns
    order: list[int]
    batch_size: int
    lengths: list[int]
    amounts: list[Amount]

    @property
    def num_rows(self) -> int:
        """Rows that there are; a step's number times `batch_size` is larger where they are trained on again."""
        return len(self.lengths)


def training_work(columns: Columns, batch_size: int, num_steps: int, *, seed: int = 0) -> TrainingWork:
    """Draw the order of the rows as `reasongenrm.packing.batches` does.

    Args:
        columns: of `sft_columns` or `dpo_columns`.
        batch_size: rows of a step, over all processes.
    """
    names = ("input_ids",) if "input_ids" in columns else ("prompt_ids", "chosen_ids", "rejected_ids")
    lengths = [sum(map(len, row)) for row in zip(*(columns[name] for name in names), strict=True)]
    config = SFTConfig(train_batch_size=batch_size, max_steps=num_steps, seed=seed)
    order = draw_order(len(lengths), config)
    ordered = {name: [rows[number] for number in order] for name, rows in columns.items()}
    amounts = (sft_amounts if len(names) == 1 else dpo_amounts)(ordered, batch_size)
    return TrainingWork(columns, order, batch_size, lengths, amounts)


def scoring_amount(rows: Sequence[Row]) -> Amount:
    """The work of a batch; a prompt is counted once in each row."""
    num_prompt = sum(len(row.prompt_ids) for row in rows)
    candidates = [candidate for row in rows for candidate in row.candidates]
    num_reason = sum(len(candidate.ids) for candidate in candidates)
    work = Workload(
        num_prompts=len(rows), prompt_tokens=num_prompt, num_reasons=len(candidates), reason_tokens=num_reason
    )
    return Amount(num_prompt + num_reason, len(candidates), work)


def scoring_rows(shape: Shape, num_prompts: int, *, seed: int = 0) -> list[Row]:
    """Prompts with SAMPLES reasons each, as `reasongenrm.reasons.candidates` encodes them."""
    draw, lengths = Draw(shape, seed), shape.lengths
    rows = []
    for number in range(num_prompts):
        candidates = []
        for sample, num in enumerate(draw.lengths(lengths.scored_reason, SAMPLES, 2, lengths.longest // 4)):
            reason = Reason(
                prompt_id=f"{number:05}", sample=sample, reason="", model="", num_tokens=num, finish_reason="stop"
            )
            ids = array("i", draw.tokens(num + BRIDGE_TOKENS + VERDICT_TOKENS))
            candidates.append(Candidate(reason, ids, num_reason_tokens=num, num_verdict_tokens=VERDICT_TOKENS))
        rows.append(Row(array("i", draw.tokens(lengths.scored_prompt)), tuple(candidates)))
    return rows


def _shortest(lengths: Lengths) -> int:
    return max(4, lengths.longest // 128)
