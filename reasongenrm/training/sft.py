"""train_sft: a checkpoint learns to write a reason and a verdict (ReasonGenRM), or a verdict (GenRM).

In: a model and training examples (a judge prompt, R*, the labelled verdict). Out: a checkpoint with our chat template,
its training log and TensorBoard event file. docs/method.md, section 3, says which tokens are trained.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

from reasongenrm.config import SFTConfig
from reasongenrm.data.chat import EncodedExample, encode_reason_example
from reasongenrm.data.chat_families import ChatFamily
from reasongenrm.data.prompts import judge_prompt
from reasongenrm.errors import ConfigError, InputError
from reasongenrm.packing.trees import IGNORED
from reasongenrm.progress import tracked
from reasongenrm.records import Drops, TrainingExample
from reasongenrm.store.artifacts import ArtifactRef, Store, download, read_records
from reasongenrm.store.stage import Stage
from reasongenrm.training.job import check_config, length_limit, load_tokenizer
from reasongenrm.training.torchrun import train
from reasongenrm.training.world import find_world
from reasongenrm.variants import VARIANTS

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Mask = Literal["one_generation", "reference"]


def loss_labels(example: EncodedExample, mask: Mask) -> list[int]:
    """The token ids that are trained, `IGNORED` everywhere else, shape (T,).

    "one_generation": everything that the model writes: the reason, the opening of the assistant turn, the verdict,
    their closing tokens, the end of the sequence. "reference": the reason and the verdict with their closing tokens.

    Source: docs/method.md, section 3; the second is that of ReasonGenRM, ReasonGenRM/src/sft at 0887f2e.
    """
    spans = [example.reason_span, example.verdict_span]
    if mask == "one_generation":
        spans += [example.bridge_span, example.end_span]
    labels = [IGNORED] * len(example.input_ids)
    for start, stop in spans:
        labels[start:stop] = example.input_ids[start:stop]
    return labels


def encode_examples(
    examples: Sequence[TrainingExample],
    tokenizer: "PreTrainedTokenizerBase",
    family: ChatFamily,
    with_reasons: bool,
    mask: Mask,
    max_length: int,
) -> tuple[dict[str, list[Any]], Drops]:
    """Tokenise examples; one that is longer than `max_length` tokens is dropped and counted, never cut.

    Returns:
        Columns input_ids, labels and length, a row an example; and what was dropped.

    Raises:
        InputError: an example for ReasonGenRM has no reason.
    """
    columns: dict[str, list[Any]] = {"input_ids": [], "labels": [], "length": []}
    drops = Drops()
    for example in tracked(examples, "train_sft (tokenising)", "example"):
        drops.num_in += 1
        if with_reasons and example.reason is None:
            raise InputError(
                f"examples.jsonl: prompt {example.prompt.prompt_id} has no reason; expected one, because the variant "
                "writes reasons. Re-run select_reasons, or train a variant without reasons."
            )
        prompt = judge_prompt(example.prompt.question, example.prompt.answer_a, example.prompt.answer_b)
        reason = example.reason if with_reasons else None
        encoded = encode_reason_example(tokenizer, family, prompt, reason, example.verdict)
        length = len(encoded.input_ids)
        if length > max_length:
            where = f"prompt {example.prompt.prompt_id}"
            drops.drop("longer_than_max_length", f"{where}: {length:,} of {max_length:,} tokens")
            continue
        drops.num_out += 1
        columns["input_ids"].append(encoded.input_ids)
        columns["labels"].append(loss_labels(encoded, mask))
        columns["length"].append(length)
    return columns, drops


def train_sft(store: Store, config: SFTConfig, variant: str, model: ArtifactRef, examples: ArtifactRef) -> ArtifactRef:
    """Fine-tune a model on selected reasons and labelled verdicts (docs/method.md, section 3).

    Args:
        variant: one that is trained on examples (`VARIANTS`); its style says whether it learns the reasons too.
        model: an imported model.
        examples: of select_reasons.

    Returns:
        A checkpoint: weights in `config.dtype`, tokenizer with our chat template, training_log.json, tensorboard/.

    Raises:
        ConfigError: the variant is another's, or settings contradict each other or have no effect.
        EmptyStageError: every example is longer than `max_length`.
        TrainingError: a loss or a gradient was not finite.
    """
    check_config(config, "train_sft")
    known = [name for name, entry in VARIANTS.items() if entry.trained_on == "examples"]
    if variant not in known:
        raise ConfigError(f"train_sft: variant is '{variant}'; expected one of {', '.join(known)}.")
    opening_role = VARIANTS[variant].opening_role
    with Stage(store, "train_sft", config, {"model": model, "examples": examples}, {"variant": variant}) as stage:
        if stage.done:
            return stage.done
        records = read_records(examples, "examples.jsonl", TrainingExample)
        world = find_world(config, stage.name)
        model_dir = download(model, stage.work_dir / "model")
        tokenizer, family = load_tokenizer(model_dir, opening_role)
        limit = length_limit(model_dir, config)
        columns, drops = encode_examples(records, tokenizer, family, opening_role == "reason", config.mask, limit)
        drops.require_some(
            "train_sft", f"Raise max_length (now {config.max_length:,}; the model allows no more than {limit:,})."
        )
        metrics = train(stage, config, columns, model_dir, opening_role, world)
        return stage.finish(drops.counts(), {"variant": variant, "num_rows": len(columns["length"]), **metrics})
