"""Are packed and plain computations the same? Losses, gradients and scores of ours against the plain formulas.

Rounding differs between any two ways, also between two plain ones: one sequence at a time, and a padded batch. Their
rounding is the larger of how far they are from each other and from the same numbers computed in a wider type; ours has
to be no farther from either. The exact proof, in float64, is in the tests.
"""

import math
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as functional
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from benchmarks import ours
from benchmarks.clock import Budget, free
from benchmarks.figures import Apart
from benchmarks.libraries import unpatched
from benchmarks.peers import one_at_a_time, padded_batch
from benchmarks.setting import Setting
from benchmarks.shapes import make_model
from benchmarks.work import Columns, dpo_columns, scoring_rows, sft_columns, training_work
from reasongenrm.config import DPOConfig, SFTConfig, TrainConfig
from reasongenrm.packing.trees import IGNORED
from reasongenrm.reasons.candidates import Row, plan_batches
from reasongenrm.reasons.score_batch import probability, score_batch
from reasongenrm.training.packed import sum_by_branch

EXAMPLES, PROMPTS, PADDED = 8, 2, 4
BETA = DPOConfig().beta
NOT_CLIPPED = 1e9
CHANCE = 1.5  # ours and the plain ways round differently; which of them is farther off is chance
ROUNDING = 2e-6  # some steps of float32: what two sums of the same numbers may differ by

Gradients = dict[str, torch.Tensor]


@dataclass(frozen=True)
class Computed:
    """A step's numbers before the weights change.

    Attributes:
        logprobs: mean log-probability of the trained tokens of every sequence, in nats, float64, shape (N,): of
            examples, or of chosen and rejected reasons in turn. One number for the whole step would be a mean of
            roundings that cancel, and which of two ways has more of that left is chance.
        gradients: of the step's loss, by the weights' names.
    """

    logprobs: torch.Tensor
    gradients: Gradients


def equality(setting: Setting) -> tuple[Apart, ...]:
    """Compare SFT, DPO and scoring."""
    lengths = replace(setting.shape.lengths, longest=2 * setting.shape.lengths.row)  # so that the padded batch fits
    shape = replace(setting.shape, lengths=lengths, examples=EXAMPLES)
    setting = replace(setting, shape=shape, budget=Budget(0.0, 0, 1))
    return (*_sft(setting), *_dpo(setting), *_scoring(setting))


def _sft(setting: Setting) -> Iterator[Apart]:
    columns = sft_columns(setting.shape, EXAMPLES, seed=setting.seed)
    yield from _compared(
        "SFT", "losses of the examples", _packed(setting, columns, SFTConfig), _plain(setting, columns)
    )


def _dpo(setting: Setting) -> Iterator[Apart]:
    columns = dpo_columns(setting.shape, setting.pairs, seed=setting.seed)
    yield from _compared("DPO", "log P of the reasons", _packed(setting, columns, DPOConfig), _plain(setting, columns))


def _scoring(setting: Setting) -> Iterator[Apart]:
    rows = scoring_rows(setting.shape, PROMPTS, seed=setting.seed)
    model = make_model(setting.shape, setting.world.device, setting.dtype, seed=setting.seed).eval()
    one = _means(found for row in rows for found in one_at_a_time(model, row))
    padded = _means(
        found
        for row in rows
        for at in range(0, len(row.candidates), PADDED)
        for found in padded_batch(model, row, row.candidates[at : at + PADDED])
    )
    wide = _means(found for row in rows for found in one_at_a_time(model.to(_wider(setting.dtype)), row))
    del model
    with unpatched():
        packed = _packed_means(rows, setting)

    def apart(left: torch.Tensor, right: torch.Tensor) -> float:
        return float((left - right).abs().max())

    plain = (one, padded, wide)
    found = [apart(packed, other) for other in plain]
    yield _apart(
        "log P of reasons and verdicts",
        "nats per token",
        found,
        [apart(one, padded), apart(one, wide), apart(padded, wide)],
    )


def _means(found: Any) -> torch.Tensor:
    """Mean log-probabilities of reasons and verdicts, shape (2 x reasons,)."""
    return torch.tensor([math.log(probability(logprobs)) for pair in found for logprobs in pair], dtype=torch.float64)


def _packed_means(rows: list[Row], setting: Setting) -> torch.Tensor:
    """The same from ours, in the order of the rows."""
    model = ours.packed_model(setting)
    scored = {
        (reason.prompt_id, reason.sample): reason
        for batch in plan_batches(rows, setting.scored_tokens)
        for reason in score_batch(model, batch)
    }
    ordered = [scored[c.reason.prompt_id, c.reason.sample] for row in rows for c in row.candidates]
    pairs = [(reason.p_reason, reason.p_verdict) for reason in ordered]
    return torch.tensor(pairs, dtype=torch.float64).log().flatten()


def _plain(setting: Setting, columns: Columns) -> tuple[Computed, Computed, Computed]:
    """One sequence at a time, padded batches, and one at a time in a wider type."""
    model = make_model(setting.shape, setting.world.device, torch.float32, seed=setting.seed)
    # Ours keeps the residual stream in the dtype of its products; packing alone is to be compared.
    narrow = model.get_input_embeddings().register_forward_hook(lambda *passed: passed[-1].to(setting.dtype))
    found = [_computed(model, columns, size, setting.dtype) for size in (1, PADDED)]
    narrow.remove()
    wide = _wider(setting.dtype)
    found.append(_computed(model.to(wide), columns, 1, wide))
    one, padded, exact = found
    return one, padded, exact


def _wider(dtype: torch.dtype) -> torch.dtype:
    return torch.float32 if dtype == torch.bfloat16 else torch.float64


def _computed(model: Any, columns: Columns, size: int, dtype: torch.dtype) -> Computed:
    """The plain formula on `size` rows at a time, its products in `dtype`."""
    step = _dpo_loss if "prompt_ids" in columns else _sft_loss
    bf16 = dtype == torch.bfloat16
    found = []
    for at in range(0, len(next(iter(columns.values()))), size):
        rows = {name: values[at : at + size] for name, values in columns.items()}
        with torch.autocast(model.device.type, torch.bfloat16) if bf16 else nullcontext():
            loss, logprobs = step(model, rows, columns)
        loss.backward()
        found.append(logprobs.detach().flatten().double())
    gradients = {name: weights.grad.float() for name, weights in model.named_parameters()}
    model.zero_grad(set_to_none=True)
    return Computed(torch.cat(found) / _num_trained(columns).to(model.device), gradients)


def _num_trained(columns: Columns) -> torch.Tensor:
    """Trained tokens of every sequence of `Computed.logprobs`, shape (N,)."""
    if "prompt_ids" not in columns:
        return torch.tensor([sum(label != IGNORED for label in labels[1:]) for labels in columns["labels"]])
    pairs = zip(columns["chosen_ids"], columns["rejected_ids"], strict=True)
    return torch.tensor([len(reason) for pair in pairs for reason in pair])


def _sft_loss(model: Any, rows: Columns, columns: Columns) -> tuple[torch.Tensor, torch.Tensor]:
    """Cross-entropy of these rows' trained tokens, over the number of all rows' trained tokens; and log P, shape
    (B,)."""
    logprobs_B = _logprobs(model, rows["input_ids"], rows["labels"])
    return -logprobs_B.sum() / _num_trained(columns).sum(), logprobs_B


def _dpo_loss(model: Any, rows: Columns, columns: Columns) -> tuple[torch.Tensor, torch.Tensor]:
    """-log sigmoid(beta ((log pi(c) - log ref(c)) - (log pi(r) - log ref(r)))), over the number of all pairs; and log
    P, shape (B, 2)."""
    margin = torch.zeros((), device=model.device)
    sides = []
    for name, sign in (("chosen_ids", 1), ("rejected_ids", -1)):
        ids = [[*prompt, *reason] for prompt, reason in zip(rows["prompt_ids"], rows[name], strict=True)]
        labels = [
            [IGNORED] * len(prompt) + reason for prompt, reason in zip(rows["prompt_ids"], rows[name], strict=True)
        ]
        logprobs = _logprobs(model, ids, labels)
        margin = margin + sign * (logprobs - logprobs.detach())  # before the first step the model is its own reference
        sides.append(logprobs)
    return -functional.logsigmoid(BETA * margin).sum() / len(columns["prompt_ids"]), torch.stack(sides, dim=1)


def _logprobs(model: Any, ids: list[list[int]], labels: list[list[int]]) -> torch.Tensor:
    """Sum of the labels' log-probabilities in each row, shape (B,); logits where a label is."""

    def padded(rows: list[list[int]], value: int) -> torch.Tensor:
        tensors = [torch.tensor(row) for row in rows]
        return torch.nn.utils.rnn.pad_sequence(tensors, batch_first=True, padding_value=value).to(model.device)

    ids_BT, labels_BT = padded(ids, 0), padded(labels, IGNORED)[:, 1:]
    mask = {"attention_mask": padded([[1] * len(row) for row in ids], 0)} if len(ids) > 1 else {}
    hidden_BTD = model.get_decoder()(ids_BT, use_cache=False, **mask).last_hidden_state[:, :-1]
    trained_BT = labels_BT != IGNORED
    logits_NV = model.get_output_embeddings()(hidden_BTD[trained_BT])
    logits_NV = logits_NV.to(torch.promote_types(logits_NV.dtype, torch.float32))
    found_N = -functional.cross_entropy(logits_NV, labels_BT[trained_BT], reduction="none")
    rows_N = trained_BT.nonzero()[:, 0]
    return torch.zeros(len(ids), dtype=found_N.dtype, device=model.device).index_add(0, rows_N, found_N)


class _Keep(TrainerCallback):
    """Gradients as they are before the first optimizer step."""

    def __init__(self) -> None:
        self.gradients: Gradients = {}

    def on_pre_optimizer_step(self, *_: Any, model: Any, **__: Any) -> None:
        self.gradients = {name: weights.grad.float().clone() for name, weights in model.named_parameters()}

    def on_step_end(self, _: TrainingArguments, __: TrainerState, control: TrainerControl, **___: Any) -> None:
        control.should_save = False


def _packed(setting: Setting, columns: Columns, kind: type[TrainConfig]) -> Computed:
    """The numbers of ours at its first step: all rows in as few forward passes as they fit into."""
    work = training_work(columns, len(next(iter(columns.values()))), 1, seed=setting.seed)
    config = kind(**ours.train_settings(setting, work), max_grad_norm=NOT_CLIPPED)
    keep = _Keep()
    with unpatched():
        trainer = ours.trainer_of(setting, config, work)
        trainer.add_callback(keep)
        sums = _sums_by_sequence(trainer)
        trainer.train()
    del trainer
    free(setting.world.device)
    logprobs = torch.cat([sums[row] for row in sorted(sums)])
    return Computed(logprobs / _num_trained(columns).to(logprobs.device), keep.gradients)


def _sums_by_sequence(trainer: Any) -> dict[int, torch.Tensor]:
    """Filled while the trainer trains: by row, the log-probabilities of its one or two sequences."""
    rows_of_pass = [rows for _, rows in trainer.plan.micro_batches()]
    inner = trainer.loss_and_sums
    found: dict[int, torch.Tensor] = {}

    def watched(output: Any, batch: Any) -> Any:
        rows = rows_of_pass.pop(0)
        sums = sum_by_branch(output.log_probs.detach(), batch).double()
        found.update(zip(rows, sums.view(len(rows), -1), strict=True))
        return inner(output, batch)

    trainer.loss_and_sums = watched
    return found


def _compared(name: str, values: str, packed: Computed, plain: tuple[Computed, Computed, Computed]) -> Iterator[Apart]:
    """Distances in the Euclidean norm: of the values, of all gradients together, and of the tensor that is farthest
    off."""
    one, padded, exact = plain
    kinds = {values: _values_apart, "gradient": _gradients_apart, "gradient, worst tensor": _worst_apart}
    for what, distance in kinds.items():
        found = [distance(packed, other) for other in plain]
        spread = [distance(left, right) for left, right in ((one, padded), (one, exact), (padded, exact))]
        yield _apart(f"{name} {what}", "relative", found, spread)


def _values_apart(left: Computed, right: Computed) -> float:
    return float((left.logprobs - right.logprobs).norm() / right.logprobs.norm())


def _gradients_apart(left: Computed, right: Computed) -> float:
    apart = sum(float((left.gradients[name] - own).double().square().sum()) for name, own in right.gradients.items())
    return math.sqrt(apart / sum(float(own.double().square().sum()) for own in right.gradients.values()))


def _worst_apart(left: Computed, right: Computed) -> float:
    return max(float((left.gradients[name] - own).norm() / own.norm()) for name, own in right.gradients.items())


def _apart(what: str, unit: str, ours_apart: list[float], plain_apart: list[float]) -> Apart:
    """Args: ours from one at a time, padded, exact; then one from padded, one from exact, padded from exact."""
    spread, error_plain = plain_apart[0], max(plain_apart[1:])
    apart, error = max(ours_apart[:2]), ours_apart[2]
    # Two plain ways may run the same kernel and be equal to the last bit, but not exact.
    allowed = max(CHANCE * spread, CHANCE * error_plain, ROUNDING)
    return Apart(
        what=what,
        unit=unit,
        ours=apart,
        spread=spread,
        error_ours=error,
        error_plain=error_plain,
        holds=apart <= allowed and error <= max(CHANCE * error_plain, ROUNDING),
    )
