"""Reasons as tokens, ready to be scored: encoded as in training, one tree per prompt, in batches.

In: judge prompts and reasons. Out: batches of rows for `scoring.py`, each a prompt with reasons behind it
(`packing.Tree`): a prompt is computed once, and nothing is padded. Nothing here needs torch.
"""

from array import array
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from reasongenrm.data.chat import EncodedExample, encode_reason_examples
from reasongenrm.data.chat_families import ChatFamily
from reasongenrm.data.prompts import judge_prompt
from reasongenrm.errors import InputError
from reasongenrm.packing.trees import IGNORED, Branch, Tree
from reasongenrm.progress import tracked
from reasongenrm.records import Drops, JudgePrompt, Reason

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class Candidate:
    """One reason as tokens."""

    reason: Reason
    ids: "array[int]"  # reason, assistant header and labelled verdict, shape (T,), both closing tokens included
    num_reason_tokens: int  # scored at the beginning of `ids`
    num_verdict_tokens: int  # scored at its end

    def branch(self) -> Branch:
        """For packing: reason and verdict are predicted, the assistant header between them is not."""
        targets = np.asarray(self.ids, np.int64)
        targets[self.num_reason_tokens : len(self.ids) - self.num_verdict_tokens] = IGNORED
        return Branch(self.ids, targets)


@dataclass(frozen=True)
class Row:
    """One prompt with some of its reasons: what is computed together. `prompt_ids` has shape (T_prompt,), T_prompt >=
    1."""

    prompt_ids: "array[int]"
    candidates: tuple[Candidate, ...]

    def tree(self) -> Tree:
        """For packing."""
        return Tree(self.prompt_ids, tuple(candidate.branch() for candidate in self.candidates))

    @property
    def num_tokens(self) -> int:
        """Tokens that the model reads of this row."""
        return len(self.prompt_ids) - 1 + sum(len(candidate.ids) for candidate in self.candidates)


def encode_candidates(
    tokenizer: "PreTrainedTokenizerBase",
    family: ChatFamily,
    prompts: Mapping[str, JudgePrompt],
    reasons: Sequence[Reason],
    max_length: int,
) -> tuple[list[Row], Drops]:
    """Tokenise reasons exactly as training does, one row a prompt; the verdict is the prompt's label.

    Args:
        tokenizer: with our template installed.
        prompts: by prompt_id.
        max_length: a reason whose whole text (prompt to sequence end) has more tokens is dropped and counted.

    Returns:
        Rows in the order of their prompts' first reasons, and the counts.

    Raises:
        InputError: a reason's prompt is not among `prompts`, or a reason is there twice.
    """
    drops = Drops()
    by_prompt: dict[str, dict[int, Reason]] = defaultdict(dict)
    for reason in reasons:
        if reason.prompt_id not in prompts:
            raise InputError(
                f"{_where(reason)}: no such prompt in prompts.jsonl. Give the prompts that these reasons were written "
                "for."
            )
        if reason.sample in by_prompt[reason.prompt_id]:
            raise InputError(f"{_where(reason)}: is there twice, expected once. Re-run the stage that wrote it.")
        by_prompt[reason.prompt_id][reason.sample] = reason
    rows = []
    for prompt_id in tracked(list(by_prompt), "score_reasons (tokenising)", "prompt"):
        of_prompt = by_prompt[prompt_id]
        prompt = prompts[prompt_id]
        text = judge_prompt(prompt.question, prompt.answer_a, prompt.answer_b)
        texts = [reason.reason for reason in of_prompt.values()]
        examples = encode_reason_examples(tokenizer, family, text, texts, prompt.label)
        candidates = []
        for reason, example in zip(of_prompt.values(), examples, strict=True):
            drops.num_in += 1
            if len(example.input_ids) > max_length:
                drops.drop("too_long", f"{_where(reason)}: {len(example.input_ids):,} tokens, limit {max_length:,}")
                continue
            candidates.append(_candidate(reason, example))
            drops.num_out += 1
        if candidates:
            start = examples[0].reason_span[0]
            rows.append(Row(array("i", examples[0].input_ids[:start]), tuple(candidates)))
    return rows, drops


def _where(reason: Reason) -> str:
    return f"reasons.jsonl: sample {reason.sample} of prompt {reason.prompt_id}"


def _candidate(reason: Reason, example: EncodedExample) -> Candidate:
    start, stop = example.reason_span[0], example.verdict_span[1]
    return Candidate(
        reason,
        array("i", example.input_ids[start:stop]),
        num_reason_tokens=example.reason_span[1] - start,
        num_verdict_tokens=stop - example.verdict_span[0],
    )


def plan_batches(rows: Sequence[Row], max_batch_tokens: int) -> list[list[Row]]:
    """Split and group rows into batches of at most `max_batch_tokens` tokens; longest rows first.

    A prompt's reasons are cut into several rows only where one row would be too long; a single reason that is too long
    by itself is a separate batch. The plan depends on the set of prompts and reasons alone, not on their order, so that
    a run that was killed resumes with the same batches and ends with the same numbers.
    """
    pieces = [piece for row in rows for piece in _split(row, max_batch_tokens)]
    pieces.sort(key=lambda row: (-row.num_tokens, row.candidates[0].reason.prompt_id, row.candidates[0].reason.sample))
    batches: list[list[Row]] = []
    room = 0
    for row in pieces:
        if row.num_tokens > room:
            batches.append([])
            room = max_batch_tokens
        batches[-1].append(row)
        room -= row.num_tokens
    return batches


def _split(row: Row, max_tokens: int) -> Iterator[Row]:
    """Pieces of a row of at most `max_tokens` tokens, each with at least one reason."""
    piece: list[Candidate] = []
    num_tokens = len(row.prompt_ids) - 1
    for candidate in sorted(row.candidates, key=lambda candidate: candidate.reason.sample):
        if piece and num_tokens + len(candidate.ids) > max_tokens:
            yield Row(row.prompt_ids, tuple(piece))
            piece, num_tokens = [], len(row.prompt_ids) - 1
        piece.append(candidate)
        num_tokens += len(candidate.ids)
    yield Row(row.prompt_ids, tuple(piece))
