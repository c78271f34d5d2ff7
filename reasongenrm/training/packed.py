"""TRL's SFT and DPO trainers on packed rows: the plan's micro-batches, losses over the whole step.

Imported by `trainers.py`, because it needs torch, transformers and TRL. Of TRL's trainers remain the fused head (logits
where a target is, in tiles, never kept), how models are wrapped for DeepSpeed and FSDP, and the names of what is
logged. Shape suffixes: T tokens of a packed row, P pairs.
"""

import math
from abc import abstractmethod
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import replace
from operator import itemgetter
from typing import Any

import torch
from accelerate.utils import gather_object, send_to_device
from datasets import Dataset
from torch.nn.functional import logsigmoid
from trl import DPOTrainer as TrlDPOTrainer
from trl import SFTTrainer as TrlSFTTrainer
from trl.models import prepare_deepspeed

from reasongenrm.errors import TrainingError
from reasongenrm.packing.attention import tensors
from reasongenrm.packing.batches import BatchPlan, example_tree, num_trained, pair_tree
from reasongenrm.packing.trees import NO_BRANCH, pack
from reasongenrm.progress import Tracker, track

Batch = dict[str, Any]
REFERENCE_COLUMNS = ("ref_chosen_logps", "ref_rejected_logps")


def track_on(name: str, total: int, unit: str, *, shown: bool) -> AbstractContextManager[Tracker | None]:
    """Progress that one process of several shows."""
    return track(name, total=total, unit=unit) if shown else nullcontext()


class MicroBatches(torch.utils.data.Dataset[Batch]):
    """What every forward pass reads, in the plan's order.

    Args:
        rows: columns of `example_tree`, or for pairs of `pair_tree` and the reference's log-probabilities.
    """

    def __init__(self, rows: Dataset, plan: BatchPlan, *, pairs: bool) -> None:
        self._rows = rows.with_format("numpy")
        self._pairs = pairs
        self._micro_batches = list(plan.micro_batches())
        # A loss is summed over a micro-batch and divided by what its whole step has, times the number of micro-batches,
        # because the Trainer averages over them.
        if pairs:
            per_step = [plan.batch_size] * plan.num_steps
        else:
            # Some rows at a time: as Python's integers, 80,000 examples would take gigabytes.
            trained = [num_trained(labels) for some in self._rows.iter(1000) for labels in some["labels"]]
            per_step = [sum(trained[row] for row in plan.rows_of_step(step)) for step in range(plan.num_steps)]
        self._weights = [plan.num_micro_batches / max(1, number) for number in per_step]

    def __len__(self) -> int:
        return len(self._micro_batches)

    def __getitem__(self, number: int) -> Batch:
        step, numbers = self._micro_batches[number]
        rows = [self._rows[row] for row in numbers]
        packed = pack([pair_tree(row) if self._pairs else example_tree(row) for row in rows])
        batch = tensors(packed) | {"num_branches": packed.num_branches, "weight": self._weights[step]}
        if self._pairs:
            for name in REFERENCE_COLUMNS:
                batch[name] = torch.tensor([float(row[name]) for row in rows], dtype=torch.float64)
        return batch


def forward(model: Any, batch: Batch) -> Any:
    """Run a model, with TRL's fused head and packed attention, on a packed row.

    Returns:
        TRL's FusedCausalLMOutput; its fields have shape (1, T), zero where nothing is predicted.
    """
    return model(
        input_ids=batch["input_ids"],
        position_ids=batch["position_ids"],
        shift_labels=batch["targets"],
        segments=batch["segments"],
        fused_lm_head=True,
    )


def sum_by_branch(values_1T: torch.Tensor, batch: Batch) -> torch.Tensor:
    """Sums over the tokens of each branch, shape (num_branches,), in float32 or better."""
    owners_T = batch["branches"][0]
    dtype = torch.promote_types(values_1T.dtype, torch.float32)
    sums = torch.zeros(batch["num_branches"] + 1, dtype=dtype, device=values_1T.device)
    # What belongs to no branch is added to one too many, which is dropped.
    owners_T = owners_T.where(owners_T != NO_BRANCH, batch["num_branches"])
    return sums.index_add(0, owners_T, values_1T[0].to(dtype))[:-1]


@contextmanager
def _fixed_order(device: torch.device) -> Iterator[None]:
    """Make torch's CPU kernels add in a fixed order.

    By default the gradients of keys that several reasons share are added by all threads at once: every run gives other
    bits, and takes 7 times as long for it.
    """
    if device.type != "cpu":
        yield
        return
    filling: Any = torch.utils.deterministic
    before = torch.are_deterministic_algorithms_enabled(), filling.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True)
    filling.fill_uninitialized_memory = False  # a help for debugging that costs time
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0])
        filling.fill_uninitialized_memory = before[1]


class _Planned:
    """What both trainers add to TRL's: the plan's micro-batches, their losses, and an end at a number that is not
    finite."""

    pairs: bool
    loss_is_scaled_for_ga = False  # the Trainer divides by the number of micro-batches

    def __init__(self, *, plan: BatchPlan, stage: str, **kwargs: Any) -> None:
        self.plan = plan
        self._stage = stage
        self._losses: list[torch.Tensor] = []  # of this optimizer step's micro-batches, so far
        self._casts = ExitStack()
        # Sums and what they are divided by, kept on the device until they are logged: asking for a number stops a GPU.
        self._sums: dict[str, list[torch.Tensor]] = defaultdict(list)
        # The data loader hands over lists of one micro-batch.
        super().__init__(data_collator=itemgetter(0), **kwargs)  # type: ignore[call-arg]
        self.train_dataset = MicroBatches(self.train_dataset, plan, pairs=self.pairs)  # type: ignore[has-type]

    def _send_telemetry(self) -> None:
        """TRL reports every run to the hub; we do not."""

    def _prepare_dataset(self, dataset: Dataset, *_: Any) -> Dataset:
        """TRL would render and tokenise texts; ours are tokens already, and tokenised once, as generation sees them."""
        return dataset

    def create_accelerator_and_postprocess(self) -> None:
        """accelerate would let FSDP exchange gradients, and hand losses and log-probabilities out, in bfloat16."""
        super().create_accelerator_and_postprocess()  # type: ignore[misc]
        plugin = self.accelerator.state.fsdp_plugin if self.is_fsdp_enabled else None  # type: ignore[attr-defined]
        if plugin is not None and plugin.mixed_precision_policy is not None:
            policy = plugin.mixed_precision_policy
            plugin.mixed_precision_policy = replace(policy, reduce_dtype=torch.float32, output_dtype=None)

    def _get_train_sampler(self, *_: Any) -> range:
        return range(len(self.train_dataset))

    def save_model(self, *args: Any, **kwargs: Any) -> None:
        """Called for a checkpoint to resume from: DeepSpeed's own files hold all that it needs, so gather nothing."""
        if not self.is_deepspeed_enabled:  # type: ignore[attr-defined]
            super().save_model(*args, **kwargs)  # type: ignore[misc]

    def compute_loss(self, model: Any, inputs: Batch, return_outputs: bool = False, **_: Any) -> torch.Tensor:
        """The mean over the step's tokens or pairs, of which the Trainer sees this micro-batch's share."""
        assert not return_outputs, "nothing evaluates during training"
        loss, sums = self.loss_and_sums(forward(model, inputs), inputs)
        for name, values in sums.items():
            self._sums[name].append(torch.stack([value.detach().double() for value in values]))
        return loss * inputs["weight"]

    @abstractmethod
    def loss_and_sums(self, output: Any, batch: Batch) -> tuple[torch.Tensor, dict[str, tuple[torch.Tensor, ...]]]:
        """The loss summed over a micro-batch, and by name what is logged: a sum and what it is divided by."""

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        if self._sums:
            totals = torch.stack([torch.stack(values).sum(0) for values in self._sums.values()])
            totals = self.accelerator.reduce(totals)  # type: ignore[attr-defined]
            logs |= {name: top / below for name, (top, below) in zip(self._sums, totals.tolist(), strict=True)}
            self._sums.clear()
        super().log(logs, *args, **kwargs)  # type: ignore[misc]

    def training_step(self, model: Any, inputs: Batch, *args: Any, **kwargs: Any) -> torch.Tensor:
        if not self._losses:
            self._casts.enter_context(self._casts_kept())
        try:
            with _fixed_order(self.args.device):  # type: ignore[attr-defined]
                loss: torch.Tensor = super().training_step(model, inputs, *args, **kwargs)  # type: ignore[misc]
        except torch.OutOfMemoryError as error:
            number = inputs["input_ids"].numel()
            twice = "" if self.args.activation_checkpointing else "; or set gradient_checkpointing to true"  # type: ignore[attr-defined]
            step = self.state.global_step + 1  # type: ignore[attr-defined]
            raise TrainingError(
                f"{self._stage}: step {step} of {self.plan.num_steps}: out of GPU memory with a forward pass of "
                f"{number:,} tokens; expected one that fits. Set max_batch_tokens to {max(1, number // 2):,} (a single "
                f"longer example needs a lower max_length){twice}. The stage resumes from its last checkpoint."
            ) from error
        self._losses.append(loss)
        return loss

    def _casts_kept(self) -> AbstractContextManager[Any]:
        """Lets autocast cast every weight once an optimizer step instead of once a micro-batch.

        It forgets its casts when the outermost context ends. This one is round all micro-batches of a step, and
        switched off: what it holds is the memory of casts, and the backward passes stay out of autocast. Nested
        contexts are counted by thread, though: on a GPU, where activations are computed twice, autograd's own thread
        ends an outermost one in every layer, and casts are made again as before. Sharded weights are cast by what
        shards them, and come and go within a step.
        """
        if self.is_deepspeed_enabled or self.is_fsdp_enabled or not self.args.bf16:  # type: ignore[attr-defined]
            return nullcontext()
        return torch.autocast(self.args.device.type, enabled=False)  # type: ignore[attr-defined]

    def _get_grad_norm(self, model: Any, grad_norm: Any = None) -> Any:
        """Called after the backward pass and before the optimizer step, so that bad numbers never reach the weights."""
        self._casts.close()  # the weights are about to change
        norm = super()._get_grad_norm(model, grad_norm=grad_norm)  # type: ignore[misc]
        loss = float(sum(self._losses, torch.zeros(())))
        self._losses.clear()
        if not math.isfinite(loss) or (norm is not None and not math.isfinite(float(norm))):
            step = self.state.global_step + 1  # type: ignore[attr-defined]
            rate = self._get_learning_rate()  # type: ignore[attr-defined]
            raise TrainingError(
                f"{self._stage}: step {step} of {self.plan.num_steps}: the loss is {loss:.4g} and the gradient's norm "
                f"{float(norm):.4g}, at a learning rate of {rate:.4g}; expected finite numbers. Lower learning_rate or "
                "max_grad_norm, raise warmup_ratio, or set dtype to float32. No model was written."
            )
        return norm


class PackedSFTTrainer(_Planned, TrlSFTTrainer):
    """Supervised fine-tuning on rows of input_ids and labels: the mean negative log-probability of the trained
    tokens."""

    pairs = False

    def loss_and_sums(self, output: Any, _: Batch) -> tuple[torch.Tensor, dict[str, tuple[torch.Tensor, ...]]]:
        return -output.log_probs.sum(), _token_sums(output, output.label_mask)


class PackedDPOTrainer(_Planned, TrlDPOTrainer):
    """Direct preference optimisation on rows of prompt_ids, chosen_ids and rejected_ids.

    Rows that have `REFERENCE_COLUMNS` are taken as they are; else the reference model is asked about every pair at the
    start.
    """

    pairs = True

    def __init__(self, **kwargs: Any) -> None:
        self.reference: dict[str, list[float]] | None = None  # by column, where it was not given
        super().__init__(**kwargs)

    def loss_and_sums(self, output: Any, batch: Batch) -> tuple[torch.Tensor, dict[str, tuple[torch.Tensor, ...]]]:
        logps_P2 = sum_by_branch(output.log_probs, batch).view(-1, 2)
        references_P2 = torch.stack([batch[name] for name in REFERENCE_COLUMNS], dim=1).to(logps_P2)
        rewards_P2 = self.beta * (logps_P2 - references_P2)
        margins_P = rewards_P2[:, 0] - rewards_P2[:, 1]
        num_pairs = margins_P.new_tensor(float(len(margins_P)))
        sums = _token_sums(output, output.label_mask)
        is_chosen_1T = output.label_mask & (batch["branches"] % 2 == 0)
        sums["mean_token_accuracy"] = _token_sums(output, is_chosen_1T)["mean_token_accuracy"]
        for side, name in enumerate(("chosen", "rejected")):
            mask_1T = output.label_mask & (batch["branches"] % 2 == side)
            sums[f"logits/{name}"] = (output.mean_logits[mask_1T].sum(), mask_1T.sum())
            sums[f"logps/{name}"] = (logps_P2[:, side].sum(), num_pairs)
            sums[f"rewards/{name}"] = (rewards_P2[:, side].sum(), num_pairs)
        sums["rewards/margins"] = (margins_P.sum(), num_pairs)
        sums["rewards/accuracies"] = ((margins_P > 0).sum(), num_pairs)
        return -logsigmoid(margins_P).sum(), sums

    def _precompute_ref_logps(self, dataset: Dataset, *_: Any) -> Dataset:
        """Ask the reference model about every pair once, all processes sharing the work.

        Returns:
            The dataset with `REFERENCE_COLUMNS`, shape (num_pairs,), in every process.
        """
        if set(REFERENCE_COLUMNS) <= set(dataset.column_names):
            return dataset
        model = self.ref_model or self.model
        if self.is_deepspeed_enabled:
            # Kept, as TRL keeps it: its hooks gather the weights.
            model = self._precompute_engine = prepare_deepspeed(self.model, self.accelerator)
        rows = dataset.with_format("numpy")
        lengths = self.plan.lengths
        # No larger than the training's own, which also keep gradients: what fits there fits here.
        mine = _share(lengths, self.plan.max_tokens, self.accelerator.process_index, self.accelerator.num_processes)
        found: dict[int, list[float]] = {}
        shown = self.accelerator.is_main_process
        with track_on(f"{self._stage} (reference model)", len(dataset), "pair", shown=shown) as tracker:
            for numbers in mine:
                packed = pack([pair_tree(rows[number]) for number in numbers])
                batch = send_to_device(tensors(packed), self.accelerator.device)
                batch["num_branches"] = packed.num_branches
                with torch.no_grad(), self.accelerator.autocast():
                    logps_P2 = sum_by_branch(forward(model, batch).log_probs, batch).view(-1, 2)
                found |= dict(zip(numbers, logps_P2.tolist(), strict=True))
                if tracker is not None:
                    done = len(numbers) * self.accelerator.num_processes
                    tracker.advance(min(done, tracker.total - tracker.done))
        everything = dict(pair for pairs in gather_object([list(found.items())]) for pair in pairs)
        self.reference = {
            name: [everything[number][side] for number in range(len(dataset))]
            for side, name in enumerate(REFERENCE_COLUMNS)
        }
        for name, values in self.reference.items():
            dataset = dataset.add_column(name, values)
        return dataset

    def _prepare_input(self, data: Any) -> Any:
        """transformers casts to DeepSpeed's bfloat16 what is no integer: of a log-probability of -500, +-1 would be
        left."""
        if isinstance(data, torch.Tensor) and data.is_floating_point():
            return data.to(self.args.device)
        return super()._prepare_input(data)


def _token_sums(output: Any, mask_1T: torch.Tensor) -> dict[str, tuple[torch.Tensor, ...]]:
    """Entropy and accuracy over the tokens of a mask; both are zero where nothing is predicted."""
    return {
        "entropy": ((output.entropy * mask_1T).sum(), mask_1T.sum()),
        "mean_token_accuracy": ((output.is_top1.bool() & mask_1T).sum(), mask_1T.sum()),
    }


def _share(lengths: Sequence[int], max_tokens: int, rank: int, num_processes: int) -> list[list[int]]:
    """One process's row numbers, by forward pass.

    Every process has the same number of passes, or sharded weights would wait forever.
    """
    passes: list[list[int]] = []
    num_tokens = max_tokens + 1
    for row in sorted(range(len(lengths)), key=lambda row: (-lengths[row], row)):
        if num_tokens + lengths[row] > max_tokens:
            passes.append([])
            num_tokens = 0
        passes[-1].append(row)
        num_tokens += lengths[row]
    while len(passes) % num_processes:
        passes.append(passes[0])
    return passes[rank::num_processes]
