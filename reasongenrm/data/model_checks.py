"""What a model's weights and tokenizer hold, checked at import: what is wrong here shows up hours later otherwise.

In: a folder that model_folder.py has found to be whole. transformers loads weights that the files lack as random
numbers and says so in a warning, and a token without a row in the embedding ends a run with an index error. Each check
ends with one message: the file, what was found, what was expected, and the way out.
"""

import logging
import math
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from reasongenrm.data.chat import (
    TEMPLATE_OPTIONS,
    detect_family,
    encode_reason_example,
    install_template,
    is_installed,
    named_family,
    render,
    told_family,
)
from reasongenrm.data.chat_families import FAMILIES, ChatFamily
from reasongenrm.data.model_folder import ModelFolder, read_json
from reasongenrm.errors import InputError

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

logger = logging.getLogger(__name__)

# Architectures whose packed rows give the numbers of separate sequences: proven for each in tests/packing, and for the
# scorer's and the trainer's heads in tests/reasons and tests/training.
EXACT = ("llama", "mistral", "qwen2", "qwen3", "phi3", "gemma3_text", "olmo2", "smollm3")
# What is in the way of some that people ask for.
_INEXACT = {
    "gemma2": "it caps attention's logits, which packed rows leave out",
    "gemma3": "it is the one that also reads images; the text models of Gemma 3 (270m, 1b) are gemma3_text",
    "granite": "it scales its logits, which scoring leaves out",
    "gpt_oss": "its attention has sinks, which packed rows leave out",
    "llama4": "its layers attend in chunks, which packed rows do not keep to",
}
# Settings of a config.json of which any but these values is in the way, too.
_INEXACT_SETTINGS = {
    "attn_logit_softcapping": "it caps attention's logits, which packed rows leave out",
    "final_logit_softcapping": "it caps its logits, which scoring leaves out",
}
_INEXACT_ROPES = ("dynamic", "longrope")
_ROPE_REASON = "its angles depend on the longest sequence of a packed row"
_BLOCK = 2**25  # numbers looked at together, so that memory stays bounded whatever a tensor's size
_NAMED = 3  # names that a message shows
# Loads a tokenizer.json in a process of its own: the library answers a file that it cannot read with an exception of
# no type of its own, or with a panic, which prints a trace and is no Exception.
_PARSE = """
import sys
from tokenizers import Tokenizer
try:
    Tokenizer.from_file(sys.argv[1])
except BaseException as error:
    print(" ".join(str(error).split()))
    sys.exit(1)
"""


@dataclass(frozen=True)
class ModelChat:
    """How a model is talked to."""

    family: ChatFamily
    is_judge: bool  # the chat template is ours
    is_named: bool  # the family was named, and the tokenizer tells none or another


def check_weights(folder: ModelFolder, path: Path, where: str, *, scores: bool) -> int | None:
    """See that the weights are all that config.json wants, in its shapes, and finite numbers.

    The model is built without memory (on torch's meta device) and compared with the files' headers. Then every tensor
    is read once, block by block: 0.3 s/GB on two cores for files in memory, besides the time of the disk
    (1 GiB in bfloat16, 2026-11-30).

    Args:
        where: what messages call the folder.
        scores: whether it will score reasons or be trained, as all but a teacher do. A teacher may be of any
            architecture; of one that is not in `EXACT`, the names in the files may be others than the model's, and
            only the numbers are looked at.

    Returns:
        Rows of the input embedding, if the names were compared.

    Raises:
        InputError: a weight is missing, has another shape, or is not finite; or it is a model of an architecture that
            transformers does not know, or that cannot be scored exactly.
    """
    config = read_json(path / "config.json", where)
    if scores:
        _check_exact(config, where)
    num_rows = _check_names(folder, _empty_model(path, where), where) if config["model_type"] in EXACT else None
    _check_numbers(folder, where)
    return num_rows


def _check_exact(config: Mapping[str, Any], where: str) -> None:
    """Refuse what would be scored or trained with other numbers than those of separate sequences."""
    model_type = config["model_type"]
    if model_type not in EXACT:
        reason = _INEXACT.get(model_type, "for others it is not proven that reasons scored together are scored exactly")
        raise InputError(
            f"{where}/config.json: model_type is {model_type!r}; expected one of {', '.join(EXACT)}: {reason}. Use a "
            "model of one of these architectures."
        )
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    kinds = [part.get("rope_type", part.get("type")) for part in (rope, *rope.values()) if isinstance(part, dict)]
    found = [(name, config[name], why) for name, why in _INEXACT_SETTINGS.items() if config.get(name) is not None]
    found += [("rope_type", kind, _ROPE_REASON) for kind in kinds if kind in _INEXACT_ROPES]
    if found:
        name, value, why = found[0]
        raise InputError(f"{where}/config.json: {name} is {value!r}; expected none: {why}. Use a model without it.")


def _check_names(folder: ModelFolder, model: "PreTrainedModel", where: str) -> int:
    """Compare the files' headers with what the model wants; returns the rows of its input embedding."""
    wanted = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    # A file may leave the prefix out: it was saved from the model without its head.
    prefix = f"{model.base_model_prefix}."
    found = {
        name if name in wanted or prefix + name not in wanted else prefix + name: tensor
        for name, tensor in folder.tensors.items()
    }
    tied = model.all_tied_weights_keys  # name -> the name that it shares its numbers with
    missing = [name for name in wanted if name not in found and tied.get(name) not in found]
    if missing:
        raise InputError(
            f"{where}: the weights lack {len(missing)} of the {len(wanted)} tensors that config.json wants "
            f"({_some(missing)}), which would be random numbers. Copy all weight files again, or the config.json that "
            "belongs to them."
        )
    for name, shape in wanted.items():
        if name in found and found[name].shape != shape:
            raise InputError(
                f"{where}/{found[name].file.name}: {name} has the shape {found[name].shape}; config.json wants "
                f"{shape}. Copy the config.json that belongs to the weights."
            )
    unknown = [name for name in found if name not in wanted]
    if unknown:
        logger.warning(
            "%s: %d weights are none of the model's and are not used: %s", where, len(unknown), _some(unknown)
        )
    return int(model.get_input_embeddings().weight.shape[0])


def check_tokenizer(path: Path, where: str, num_rows: int | None, chat_family: str | None) -> ModelChat:
    """Load a tokenizer, tell its chat family, and see that its template and its tokens can be used.

    Args:
        where: what messages call the folder.
        num_rows: of the input embedding; None: of a teacher whose rows are not known, and that scores nothing.
        chat_family: of the config; None: told from the tokens.

    Raises:
        InputError: the tokenizer cannot be loaded, is of no supported family, has no chat template or one that cannot
            be rendered from messages alone, a token has no row in the embedding, or a piece of a conversation has other
            tokens by itself than in its place.
    """
    tokenizer = _load_tokenizer(path, where)
    is_judge = is_installed(tokenizer)
    if chat_family is None or is_judge:
        family = detect_family(tokenizer)
        if chat_family not in (None, family.name):
            raise InputError(
                f"{where}: is a judge of the chat family {family.name}, but model.chat_family is {chat_family}. Leave "
                "chat_family out, or give the model that was meant."
            )
    else:
        family = named_family(tokenizer, chat_family)
    is_named = chat_family is not None and not is_judge
    _check_template(tokenizer, family, where, is_named)
    if num_rows is not None:
        _check_ids(tokenizer, family, where, num_rows)
        _check_pieces(tokenizer, family, where)
    return ModelChat(family, is_judge, is_named and told_family(tokenizer) != family)


def _empty_model(path: Path, where: str) -> "PreTrainedModel":
    """The model that config.json describes, without memory for its weights."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    try:
        with torch.device("meta"):
            model: PreTrainedModel = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(path))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RuntimeError, ZeroDivisionError) as error:
        raise InputError(
            f"{where}/config.json: transformers cannot build the model that it describes: {_line(error)}. "
            "Copy it again."
        ) from error
    return model


def _check_numbers(folder: ModelFolder, where: str) -> None:
    from safetensors import safe_open

    for file in sorted({tensor.file for tensor in folder.tensors.values()}):
        with safe_open(file, "pt") as opened:
            for name in opened.keys():  # noqa: SIM118 - the file itself cannot be iterated
                num_bad = sum(_num_not_finite(block) for block in _blocks(opened, name))
                if num_bad:
                    raise InputError(
                        f"{where}/{file.name}: {name} holds {num_bad:,} numbers that are NaN or infinite, of "
                        f"{math.prod(folder.tensors[name].shape):,}. The file is damaged, or training diverged. "
                        "Copy it again, or take an earlier checkpoint."
                    )


def _blocks(opened: Any, name: str) -> Iterator["torch.Tensor"]:
    """A tensor in pieces of whole rows, of `_BLOCK` numbers where a row has no more."""
    shape = opened.get_slice(name).get_shape()
    if not shape:
        yield opened.get_tensor(name)
        return
    num_rows = max(1, _BLOCK // max(1, math.prod(shape[1:])))
    for start in range(0, shape[0], num_rows):
        yield opened.get_slice(name)[start : start + num_rows]


def _num_not_finite(block: "torch.Tensor") -> int:
    """Numbers that are NaN or infinite; a look at the extremes, of which a NaN is one, is enough as a rule."""
    import torch

    if block.element_size() == 1:  # float8 has no arithmetic of its own
        block = block.float()
    if not block.is_floating_point() or block.numel() == 0 or torch.isfinite(torch.stack(block.aminmax())).all():
        return 0
    return int((~torch.isfinite(block)).sum())


def _load_tokenizer(path: Path, where: str) -> "PreTrainedTokenizerBase":
    import tokenizers
    from transformers import AutoTokenizer

    file = path / "tokenizer.json"
    if file.is_file():
        read_json(file, where)
        parsed = subprocess.run([sys.executable, "-c", _PARSE, str(file)], capture_output=True, text=True, check=False)
        if parsed.returncode:
            reason = parsed.stdout.strip() or f"it ended with {parsed.returncode}"
            raise InputError(
                f"{where}/tokenizer.json: tokenizers {tokenizers.__version__} cannot read it: {reason}. It is damaged, "
                "or was written by another version of the library. Copy it again, or save it with this version."
            )
    try:
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(path)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, ImportError) as error:
        raise InputError(f"{where}: its tokenizer cannot be loaded: {_line(error)}. Copy the model again.") from error
    return tokenizer


def _check_template(tokenizer: "PreTrainedTokenizerBase", family: ChatFamily, where: str, is_named: bool) -> None:
    """See that the chat template needs nothing but messages, shows them, and has the family's markup if it can tell."""
    import jinja2

    if tokenizer.chat_template is None:
        raise InputError(f"{where}: has no chat template; expected an instruct model, which has one. Give such a one.")
    said = "Which one, the first or the second?"
    try:
        text = str(
            tokenizer.apply_chat_template(
                [{"role": "user", "content": said}], tokenize=False, add_generation_prompt=True, **TEMPLATE_OPTIONS
            )
        )
    except (jinja2.TemplateError, TypeError, ValueError, KeyError, AttributeError, IndexError) as error:
        raise InputError(
            f"{where}: its chat template cannot be rendered from a user's message: {_line(error)}. Expected one that "
            "needs messages and add_generation_prompt alone. Copy the model again, or fix chat_template.jinja."
        ) from error
    if said not in text:
        raise InputError(
            f"{where}: its chat template leaves out what the user says; it renders {text!r}. Copy the model again, or "
            "fix chat_template.jinja."
        )
    if _has_markup(text, family, said):
        return
    # Backwards: ChatML before the Qwens, which write alike.
    others = [other.name for other in reversed(FAMILIES) if _has_markup(text, other, said)]
    if is_named or others:
        advice = f"Set model.chat_family to {others[0]}." if others else "Leave model.chat_family out, or fix it."
        raise InputError(
            f"{where}: its chat template has not the markup of the chat family {family.name}; it renders {text!r}, "
            f"expected {family.opening('user') + said + family.turn_end!r} in it. {advice}"
        )


def _has_markup(text: str, family: ChatFamily, said: str) -> bool:
    return family.opening("user") + said + family.turn_end in text


def _check_ids(tokenizer: "PreTrainedTokenizerBase", family: ChatFamily, where: str, num_rows: int) -> None:
    """See that every token that can occur has a row.

    A control token that is kept out of all texts, and that neither the tokenizer nor the family uses, never occurs:
    Gemma 3's text models have none for <image_soft_token>.
    """
    used = {tokenizer.bos_token, tokenizer.eos_token, tokenizer.pad_token, tokenizer.unk_token}
    used |= {family.first_token, family.turn_end, family.sequence_end, family.pad_token}
    beyond = {
        token: number
        for token, number in tokenizer.get_vocab().items()
        if number >= num_rows and (token in used or not any(part in token for part in family.control_tokens))
    }
    if beyond:
        named = _some([f"{token!r} is {number}" for token, number in sorted(beyond.items(), key=lambda item: item[1])])
        raise InputError(
            f"{where}: {len(beyond)} tokens of the tokenizer have no row in the embedding ({named}), which has "
            f"{num_rows}: the tokenizer of another model, or tokens added without resize_token_embeddings. Copy the "
            "tokenizer that belongs to the weights."
        )


def _check_pieces(tokenizer: "PreTrainedTokenizerBase", family: ChatFamily, where: str) -> None:
    """See that an example tokenised piece by piece, as it is trained and scored, is what the judge's template gives.

    Gives the tokenizer that template.
    """
    install_template(tokenizer, family, "reason")
    prompt, reason = "Which one?\n\nA or B?", "B is right.\n\n1. It is short: 2 < 3."
    pieces = encode_reason_example(tokenizer, family, prompt, reason, "[[B]]").input_ids
    turns = [("user", prompt), ("reason", reason), ("assistant", "[[B]]")]
    whole = render(tokenizer, [{"role": role, "content": text} for role, text in turns], add_generation_prompt=False)
    if pieces != whole:
        place = next((at for at, pair in enumerate(zip(pieces, whole, strict=False)) if pair[0] != pair[1]), 0)
        found, wanted = tokenizer.convert_ids_to_tokens([pieces[place], whole[place]])
        raise InputError(
            f"{where}: its tokenizer gives a text other tokens by itself than within a conversation ({found!r}, not "
            f"{wanted!r}), as those of Llama 2 and Mistral do, which put a space before it: a reason cannot be scored "
            "as it is generated. Use a model with a byte-level vocabulary, or Gemma 3."
        )


def _some(names: list[str]) -> str:
    shown = ", ".join(names[:_NAMED])
    return f"{shown}, ..." if len(names) > _NAMED else shown


def _line(error: Exception) -> str:
    return " ".join(str(error).split()).rstrip(".") or type(error).__name__
