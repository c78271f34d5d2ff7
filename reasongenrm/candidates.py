"""Reasons as tokens, ready to be scored: encoded as in training, one row a prompt, rows planned into batches.

In: judge prompts and reasons. Out: batches of rows for `scoring.py`. All reasons of a prompt share one row,
`prompt reason_1 bridge verdict reason_2 bridge verdict ...`: each is to see the prompt and itself alone, and to count its
positions from the prompt's end. So a prompt is computed once, and nothing is padded between its reasons. Nothing here
needs torch. Shape suffixes: B rows of a batch, S tokens of a row.
"""

from array import array
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from reasongenrm.chat import ChatFamily, encode_reason_example
from reasongenrm.errors import InputError
from reasongenrm.prompts import judge_prompt
from reasongenrm.records import Drops, JudgePrompt, Reason

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class Candidate:
    """One reason as tokens.

    Attributes:
        ids: reason, bridge and labelled verdict, shape (T,), both closing tokens included.
        num_reason_tokens, num_verdict_tokens: how many of the first and of the last of them are scored.
    """

    reason: Reason
    ids: "array[int]"
    num_reason_tokens: int
    num_verdict_tokens: int

    @property
    def num_inputs(self) -> int:
        """Tokens that the model reads: all but the last, after which nothing is predicted."""
        return len(self.ids) - 1


@dataclass(frozen=True)
class Row:
    """One prompt with some of its reasons: what is computed together. `prompt_ids` has shape (T_prompt,), T_prompt >= 1."""

    prompt_ids: "array[int]"
    candidates: tuple[Candidate, ...]

    @property
    def num_tokens(self) -> int:
        """S before padding."""
        return len(self.prompt_ids) + sum(candidate.num_inputs for candidate in self.candidates)


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
    prompt_ids: dict[str, array[int]] = {}
    candidates: dict[str, dict[int, Candidate]] = defaultdict(dict)
    for reason in reasons:
        drops.num_in += 1
        where = f"reasons.jsonl: sample {reason.sample} of prompt {reason.prompt_id}"
        if reason.prompt_id not in prompts:
            raise InputError(
                f"{where}: no such prompt in prompts.jsonl. Give the prompts that these reasons were written for."
            )
        if reason.sample in candidates[reason.prompt_id]:
            raise InputError(f"{where}: is there twice; expected each sample once. Re-run the stage that wrote it.")
        prompt = prompts[reason.prompt_id]
        text = judge_prompt(prompt.question, prompt.answer_a, prompt.answer_b)
        example = encode_reason_example(tokenizer, family, text, reason.reason, prompt.label)
        if len(example.input_ids) > max_length:
            drops.drop("too_long", f"{where}: {len(example.input_ids):,} tokens, limit {max_length:,}")
            continue
        start, stop = example.reason_span[0], example.verdict_span[1]
        prompt_ids.setdefault(reason.prompt_id, array("i", example.input_ids[:start]))
        candidates[reason.prompt_id][reason.sample] = Candidate(
            reason,
            array("i", example.input_ids[start:stop]),
            num_reason_tokens=example.reason_span[1] - start,
            num_verdict_tokens=stop - example.verdict_span[0],
        )
        drops.num_out += 1
    rows = [Row(ids, tuple(candidates[prompt_id].values())) for prompt_id, ids in prompt_ids.items()]
    return rows, drops


def plan_batches(rows: Sequence[Row], max_batch_tokens: int) -> list[list[Row]]:
    """Split and group rows into batches of at most `max_batch_tokens` tokens, padding counted; longest rows first.

    A prompt's reasons are cut into several rows only where one row would be too long; a single reason that is too long
    by itself is a batch of its own. The plan depends on the set of prompts and reasons alone, not on their order, so that
    a run that was killed goes on with the same batches and ends with the same numbers.
    """
    pieces = [piece for row in rows for piece in _split(row, max_batch_tokens)]
    pieces.sort(key=lambda row: (-row.num_tokens, row.candidates[0].reason.prompt_id, row.candidates[0].reason.sample))
    batches: list[list[Row]] = []
    for row in pieces:
        if batches and (len(batches[-1]) + 1) * batches[-1][0].num_tokens <= max_batch_tokens:
            batches[-1].append(row)
        else:
            batches.append([row])
    return batches


def _split(row: Row, max_tokens: int) -> Iterator[Row]:
    """Pieces of a row of at most `max_tokens` tokens, each with at least one reason."""
    piece: list[Candidate] = []
    num_tokens = len(row.prompt_ids)
    for candidate in sorted(row.candidates, key=lambda candidate: candidate.reason.sample):
        if piece and num_tokens + candidate.num_inputs > max_tokens:
            yield Row(row.prompt_ids, tuple(piece))
            piece, num_tokens = [], len(row.prompt_ids)
        piece.append(candidate)
        num_tokens += candidate.num_inputs
    yield Row(row.prompt_ids, tuple(piece))


@dataclass
class Layout:
    """Where the tokens of a batch's rows lie. `sources` are places in the flattened (B * S) batch whose hidden states
    predict `targets`; both have shape (N,), reason tokens then verdict tokens of each candidate in turn."""

    width: int
    ids_BS: list[list[int]] = field(default_factory=list)
    positions_BS: list[list[int]] = field(default_factory=list)
    segments_BS: list[list[int]] = field(default_factory=list)  # 0: prompt, k: k-th reason, -1: padding
    sources: list[int] = field(default_factory=list)
    targets: list[int] = field(default_factory=list)

    def add(self, row: Row) -> None:
        """Lay out one more row."""
        first = len(self.ids_BS) * self.width
        num_prompt = len(row.prompt_ids)
        ids, positions, segments = list(row.prompt_ids), list(range(num_prompt)), [0] * num_prompt
        for number, candidate in enumerate(row.candidates, start=1):
            # A reason's first token is predicted by the prompt's last, wherever in the row the reason lies.
            sources = [num_prompt - 1, *range(len(ids), len(ids) + candidate.num_inputs)]
            for scored in (slice(candidate.num_reason_tokens), slice(-candidate.num_verdict_tokens, None)):
                self.sources += [first + source for source in sources[scored]]
                self.targets += candidate.ids[scored]
            ids += candidate.ids[:-1]
            positions += range(num_prompt, num_prompt + candidate.num_inputs)
            segments += [number] * candidate.num_inputs
        num_padding = self.width - len(ids)
        self.ids_BS.append(ids + [0] * num_padding)
        self.positions_BS.append(positions + [0] * num_padding)
        self.segments_BS.append(segments + [-1] * num_padding)
