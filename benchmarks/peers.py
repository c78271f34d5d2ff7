"""The peers' ways of the same work: TRL's trainers with its defaults, and reasons scored one at a time.

What differs from `SFTConfig()` and `DPOConfig()` is in `Way.settings` of the results, and is: the rows' order (ours
gets the same), the length limit (nothing is cut), gradient accumulation (as many examples in a step as ours), on a CPU
float32, and nothing is saved or reported.
"""

import warnings
from collections.abc import Sequence
from typing import Any

import torch
from datasets import Dataset
from trl import DPOConfig, DPOTrainer, SFTConfig, SFTTrainer

from benchmarks.setting import Done, Setting, Settings, dtype_name, time_batches, time_steps
from benchmarks.shapes import make_model
from benchmarks.work import TrainingWork
from reasongenrm.demo.tiny import tiny_tokenizer
from reasongenrm.reasons.candidates import Candidate, Row

DEFAULT_BATCH = 8  # TRL's, for each process; a step with fewer examples has a smaller one


class _TokenisedDPOTrainer(DPOTrainer):
    """TRL's DPO on rows of token ids: it would render and tokenise texts first, which is not measured."""

    def _prepare_dataset(self, dataset: Dataset, *_: Any) -> Dataset:
        return dataset


def trl_sft(setting: Setting, work: TrainingWork, *, liger: bool = False) -> Done:
    """SFT by `SFTTrainer` as `SFTConfig()` has it, or with `use_liger_kernel=True`."""
    settings = _settings(setting, work) | ({"use_liger_kernel": True} if liger else {})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # TRL 1.16 deprecates use_liger_kernel
        trainer = SFTTrainer(
            model=make_model(setting.shape, setting.world.device, torch.float32, seed=setting.seed),
            # Rows are tokens of the right length already; it would go through them all to find that out.
            args=SFTConfig(**settings, **_quiet(setting), dataset_kwargs={"skip_prepare_dataset": True}),
            train_dataset=_rows(work),
            processing_class=tiny_tokenizer("qwen2.5"),
        )
        return Done(time_steps(trainer, setting, work.amounts), settings)


def trl_dpo(setting: Setting, work: TrainingWork) -> Done:
    """DPO by `DPOTrainer` as `DPOConfig()` has it: the reference model is asked in every step."""
    settings = _settings(setting, work)
    models = [make_model(setting.shape, setting.world.device, torch.float32, seed=setting.seed) for _ in range(2)]
    trainer = _TokenisedDPOTrainer(
        model=models[0],
        ref_model=models[1],  # TRL would load a copy in the policy's dtype from the policy's path; ours has none
        args=DPOConfig(**settings, **_quiet(setting)),
        train_dataset=_rows(work),
        processing_class=tiny_tokenizer("qwen2.5"),
    )
    return Done(time_steps(trainer, setting, work.amounts), settings)


def _rows(work: TrainingWork) -> Dataset:
    """As ours takes them, in a row: TRL's sampler is told to keep to it."""
    return Dataset.from_dict(dict(work.columns)).select(work.order)


def _settings(setting: Setting, work: TrainingWork) -> Settings:
    """What differs from TRL's defaults."""
    batch = min(DEFAULT_BATCH, work.batch_size // setting.world.size)
    return {
        "bf16": setting.dtype == torch.bfloat16,
        "per_device_train_batch_size": batch,
        "gradient_accumulation_steps": work.batch_size // (batch * setting.world.size),
        "max_length": setting.shape.lengths.longest,
        "max_steps": setting.num_steps,
        "train_sampling_strategy": "sequential",
    }


def _quiet(setting: Setting) -> dict[str, Any]:
    """What has no bearing on speed."""
    return {
        "output_dir": str(setting.scratch / "trl"),
        "use_cpu": setting.world.device.type == "cpu",
        "dataloader_pin_memory": setting.world.device.type == "cuda",
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
    }


def plain_scoring(setting: Setting, rows: Sequence[Row]) -> Done:
    """Scoring one reason at a time, in ours' dtype."""
    model = make_model(setting.shape, setting.world.device, setting.dtype, seed=setting.seed).eval()
    steps = time_batches(setting, [[row] for row in rows], lambda batch: one_at_a_time(model, batch[0]))
    return Done(steps, {"batch_size": 1, "dtype": dtype_name(setting.dtype)})


Logprobs = tuple[list[float], list[float]]  # of a reason's tokens and of its verdict's


def one_at_a_time(model: Any, row: Row) -> list[Logprobs]:
    """Score every reason of a prompt in a forward pass of its own, with a log-softmax over all logits.

    Source: ReasonGenRM, ReasonGenRM/src/sft/reward_sft_dataset.py at 0887f2e.
    """
    return [found for candidate in row.candidates for found in padded_batch(model, row, [candidate])]


def padded_batch(model: Any, row: Row, candidates: Sequence[Candidate]) -> list[Logprobs]:
    """The same for several reasons of a prompt, padded to the longest; one of them alone is not padded."""
    num_prompt = len(row.prompt_ids)
    rows = [torch.tensor([*row.prompt_ids, *candidate.ids]) for candidate in candidates]
    ids_BT = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True).to(model.device)
    mask = {}
    if len(rows) > 1:
        lengths = torch.tensor([len(ids) for ids in rows])
        mask = {"attention_mask": (torch.arange(ids_BT.shape[1]) < lengths[:, None]).long().to(model.device)}
    with torch.inference_mode():
        logits_BTV = model(ids_BT, use_cache=False, **mask).logits
        logprobs_BTV = torch.log_softmax(logits_BTV[:, :-1].float(), dim=-1)
        logprobs_BT = logprobs_BTV.gather(-1, ids_BT[:, 1:, None])[:, num_prompt - 1 :, 0].tolist()
    found = []
    for candidate, logprobs in zip(candidates, logprobs_BT, strict=True):
        scored = logprobs[: len(candidate.ids)]
        found.append((scored[: candidate.num_reason_tokens], scored[-candidate.num_verdict_tokens :]))
    return found
