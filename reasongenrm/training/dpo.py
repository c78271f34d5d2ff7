"""train_dpo: the SFT model learns to prefer its own fluent, right reasons to its fluent, wrong ones.

In: the SFT checkpoint and preferences (two on-policy reasons for one judge prompt). Out: a checkpoint like train_sft's.
docs/method.md, section 6: the verdict and the assistant header before it are left out, so that DPO moves the reasoning,
not the verdict.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from reasongenrm.config import DPOConfig
from reasongenrm.data.chat import encode_reason_examples
from reasongenrm.data.chat_families import ChatFamily
from reasongenrm.data.prompts import judge_prompt
from reasongenrm.progress import tracked
from reasongenrm.records import Drops, Preference
from reasongenrm.store.artifacts import ArtifactRef, Store, download, read_records
from reasongenrm.store.stage import Stage
from reasongenrm.training.job import check_config, kept_reference, length_limit, load_tokenizer, reference_stage
from reasongenrm.training.torchrun import train
from reasongenrm.training.world import find_world

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def encode_preferences(
    preferences: Sequence[Preference], tokenizer: "PreTrainedTokenizerBase", family: ChatFamily, max_length: int
) -> tuple[dict[str, list[Any]], Drops]:
    """Tokenise pairs: the prompt, and each reason with its closing token; what would follow is left away.

    A causal model gives the reason the same log-probabilities whether the verdict stands after it or not, so leaving it
    away is masking it out. A pair of which one side is longer than `max_length` tokens is dropped and counted.

    Returns:
        Columns prompt_ids, chosen_ids, rejected_ids and length (all three together), a row a pair; what was dropped.
    """
    columns: dict[str, list[Any]] = {"prompt_ids": [], "chosen_ids": [], "rejected_ids": [], "length": []}
    drops = Drops()
    for pair in tracked(preferences, "train_dpo (tokenising)", "pair"):
        drops.num_in += 1
        text = judge_prompt(pair.prompt.question, pair.prompt.answer_a, pair.prompt.answer_b)
        # Whatever the verdicts are, they are left away below.
        reasons, verdict = (pair.chosen, pair.rejected), pair.chosen_verdict
        chosen, rejected = encode_reason_examples(tokenizer, family, text, reasons, verdict)
        longest = max(chosen.reason_span[1], rejected.reason_span[1])
        if longest > max_length:
            where = f"prompt {pair.prompt.prompt_id}"
            drops.drop("longer_than_max_length", f"{where}: {longest:,} of {max_length:,} tokens")
            continue
        drops.num_out += 1
        columns["prompt_ids"].append(chosen.input_ids[slice(*chosen.prompt_span)])
        columns["chosen_ids"].append(chosen.input_ids[slice(*chosen.reason_span)])
        columns["rejected_ids"].append(rejected.input_ids[slice(*rejected.reason_span)])
        columns["length"].append(sum(len(columns[name][-1]) for name in ("prompt_ids", "chosen_ids", "rejected_ids")))
    return columns, drops


def train_dpo(store: Store, config: DPOConfig, model: ArtifactRef, preferences: ArtifactRef) -> ArtifactRef:
    """Train the SFT model by direct preference optimisation on reasons (docs/method.md, section 6).

    loss = -log sigmoid(beta * ((log pi(c) - log ref(c)) - (log pi(r) - log ref(r)))), where log pi and log ref are sums
    over the tokens of the chosen and the rejected reason, closing token included, and ref is the model before training.

    Args:
        model: of train_sft, that writes reasons.
        preferences: of select_preferences.

    Returns:
        A checkpoint: weights in `config.dtype`, tokenizer with our chat template, training_log.json, tensorboard/.

    Raises:
        ConfigError: settings contradict each other, or have no effect.
        EmptyStageError: every pair is longer than `max_length`.
        TrainingError: a loss or a gradient was not finite.

    Source: docs/method.md, section 6; arXiv 2305.18290.
    """
    check_config(config, "train_dpo")
    with Stage(store, "train_dpo", config, {"model": model, "preferences": preferences}) as stage:
        if stage.done:
            return stage.done
        records = read_records(preferences, "preferences.jsonl", Preference)
        world = find_world(config, stage.name)
        model_dir = download(model, stage.work_dir / "model")
        tokenizer, family = load_tokenizer(model_dir, "reason")
        limit = length_limit(model_dir, config)
        columns, drops = encode_preferences(records, tokenizer, family, limit)
        drops.require_some(
            "train_dpo", f"Raise max_length (now {config.max_length:,}; the model allows no more than {limit:,})."
        )
        columns |= kept_reference(reference_stage(store, config, limit, {"model": model, "preferences": preferences}))
        metrics = train(stage, config, columns, model_dir, "reason", world)
        return stage.finish(drops.counts(), metrics)
