"""A tiny real checkpoint of each family: random Llama weights, byte-level BPE, the family's tokens.

It loads as any model of the hub does (`AutoModelForCausalLM`, `AutoTokenizer`), in milliseconds, without a network. The
tests use it, and so does the smoke run of a new cluster (smoke.py): everything is real but what the model knows.
"""

import json
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

from reasongenrm.data.chat import detect_family, install_template, save_reasoning_parser

Family = Literal["chatml", "qwen2.5", "qwen3", "llama3", "gemma3", "phi4"]
FAMILIES: tuple[Family, ...] = get_args(Family)

CORPUS = (
    "Which answer is better? Answer A is better than answer B: the verdict is [[A]].",
    "Answer B follows the question and answer A does not, so the verdict is [[B]].",
    "system user reason assistant\n\n",
)


class _Tokens(NamedTuple):
    """Special tokens of one family in the order of their ids, and the roles that the hub's tokenizer gives them."""

    special: str
    bos: str | None
    eos: str
    pad: str | None
    template: str
    added: str = ""  # tokens that are no text, but that the hub's tokenizer does not call special
    strips: bool = False  # special tokens swallow the white space round them


# What an instruct model of the family brings along itself; it knows nothing of a reason role.
_CHATML_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
_LLAMA3_TEMPLATE = (
    "<|begin_of_text|>{% for message in messages %}<|start_header_id|>{{ message['role'] }}<|end_header_id|>\n\n"
    "{{ message['content'] | trim }}<|eot_id|>{% endfor %}"
    "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)
_QWEN3_TEMPLATE = (
    _CHATML_TEMPLATE.removesuffix("{% endif %}")
    + "{% if enable_thinking is defined and not enable_thinking %}<think>\n\n</think>\n\n{% endif %}{% endif %}"
)
_GEMMA3_TEMPLATE = (
    "<bos>{% for message in messages %}<start_of_turn>"
    "{{ 'model' if message['role'] == 'assistant' else message['role'] }}\n"
    "{{ message['content'] | trim }}<end_of_turn>\n{% endfor %}"
    "{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
)
_PHI4_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}<|im_sep|>{{ message['content'] }}<|im_end|>"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant<|im_sep|>{% endif %}"
)
_TOKENS: dict[Family, _Tokens] = {
    "chatml": _Tokens(  # as in HuggingFaceTB/SmolLM2-135M-Instruct
        "<|endoftext|> <|im_start|> <|im_end|> <repo_name> <file_sep>",
        bos="<|im_start|>",
        eos="<|im_end|>",
        pad="<|im_end|>",
        template=_CHATML_TEMPLATE,
    ),
    "qwen2.5": _Tokens(  # as in Qwen/Qwen2.5-7B-Instruct
        "<|endoftext|> <|im_start|> <|im_end|> <|object_ref_start|> <|vision_start|> <|fim_prefix|> <|fim_pad|>",
        bos=None,
        eos="<|im_end|>",
        pad="<|endoftext|>",
        template=_CHATML_TEMPLATE,
    ),
    "qwen3": _Tokens(  # as in Qwen/Qwen3-8B
        "<|endoftext|> <|im_start|> <|im_end|> <|object_ref_start|> <|vision_start|>",
        bos=None,
        eos="<|im_end|>",
        pad="<|endoftext|>",
        template=_QWEN3_TEMPLATE,
        added="<tool_call> </tool_call> <|fim_pad|> <tool_response> </tool_response> <think> </think>",
    ),
    "llama3": _Tokens(  # as in meta-llama/Llama-3.1-8B-Instruct
        "<|begin_of_text|> <|end_of_text|> <|reserved_special_token_0|> <|finetune_right_pad_id|> <|start_header_id|> "
        "<|end_header_id|> <|eom_id|> <|eot_id|> <|python_tag|>",
        bos="<|begin_of_text|>",
        eos="<|eot_id|>",
        pad=None,
        template=_LLAMA3_TEMPLATE,
    ),
    "gemma3": _Tokens(  # as in google/gemma-3-1b-it
        "<pad> <eos> <bos> <unk> <mask> <start_of_turn> <end_of_turn> <start_of_image> <end_of_image>",
        bos="<bos>",
        eos="<end_of_turn>",
        pad="<pad>",
        template=_GEMMA3_TEMPLATE,
    ),
    "phi4": _Tokens(  # as in microsoft/phi-4
        "<|endoftext|> <|fim_prefix|> <|dummy_87|> <|im_start|> <|im_end|> <|im_sep|>",
        bos="<|endoftext|>",
        eos="<|im_end|>",
        pad="<|dummy_87|>",
        template=_PHI4_TEMPLATE,
        strips=True,
    ),
}

# How the tokenizers of Llama 3 and Qwen 2.5 cut text into words (the "Split" pattern of their tokenizer.json).
_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def tiny_tokenizer(family: Family) -> Any:
    """A BPE tokenizer with the family's special tokens and its own chat template."""
    from tokenizers import AddedToken
    from transformers import PreTrainedTokenizerFast

    tokens = _TOKENS[family]
    special = tokens.special.split()
    tokenizer = _spelled_out(special) if family == "gemma3" else _byte_level(special, like_gpt2=family == "chatml")
    tokenizer.add_tokens(tokens.added.split())
    if tokens.strips:
        tokenizer.add_special_tokens([AddedToken(token, lstrip=True, rstrip=True, special=True) for token in special])
    if family in ("llama3", "gemma3"):  # the hub's post-processor puts the first token there by itself
        from tokenizers.processors import TemplateProcessing

        first = (str(tokens.bos), tokenizer.token_to_id(tokens.bos))
        tokenizer.post_processor = TemplateProcessing(single=f"{tokens.bos} $A", special_tokens=[first])
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=tokens.bos,
        eos_token=tokens.eos,
        pad_token=tokens.pad,
        model_max_length=4096,
        clean_up_tokenization_spaces=False,
    )
    fast.chat_template = tokens.template
    return fast


def _byte_level(special: list[str], *, like_gpt2: bool) -> Any:
    """SmolLM2 cuts words as GPT-2 did; the others keep a turn opening's line breaks together."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    if not like_gpt2:
        split = pre_tokenizers.Split(Regex(_WORDS), behavior="isolated")
        to_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, to_bytes])
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=384, initial_alphabet=alphabet, special_tokens=special, show_progress=False
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    return tokenizer


def _spelled_out(special: list[str]) -> Any:
    """As Gemma's: a low line for a space, and a byte's own token for what the vocabulary cannot spell."""
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True))
    tokenizer.normalizer = normalizers.Replace(" ", "\u2581")
    tokenizer.pre_tokenizer = pre_tokenizers.Split(" ", behavior="merged_with_previous")
    alphabet = ["\n", "\u2581", *map(chr, range(33, 127))]
    trainer = trainers.BpeTrainer(
        vocab_size=128, initial_alphabet=alphabet, special_tokens=special, show_progress=False
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    form = json.loads(tokenizer.to_str())
    form["model"]["byte_fallback"] = True
    form["model"]["vocab"] |= {f"<0x{byte:02X}>": tokenizer.get_vocab_size() + byte for byte in range(256)}
    tokenizer = Tokenizer.from_str(json.dumps(form))
    tokenizer.decoder = decoders.Sequence([decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse()])
    tokenizer.add_tokens(["\n\n", "\n\n\n"])
    return tokenizer


def tiny_checkpoint(
    path: Path, family: Family, *, opening_role: Literal["reason", "assistant"] | None = None, seed: int = 0
) -> Path:
    """Write a random Llama (hidden size 32, 2 layers, float32, context 4,096) and its tokenizer; returns `path`.

    Args:
        path: folder to write; made if it is missing.
        family: whose special tokens the tokenizer has.
        opening_role: install ReasonGenRM's chat template, as a trained checkpoint has it; None: the base's own.
        seed: of the random weights.
    """
    import torch
    from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM

    tokenizer = tiny_tokenizer(family)
    if opening_role is not None:
        path.mkdir(parents=True, exist_ok=True)
        install_template(tokenizer, detect_family(tokenizer), opening_role)
        save_reasoning_parser(path)
    special = {name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32,  # the smallest that GPU attention kernels know
        max_position_embeddings=4096,
        tie_word_embeddings=True,
        initializer_range=0.3,  # wide enough that the most probable tokens are not all but equal
        **special,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = LlamaForCausalLM(config)
    model.generation_config = GenerationConfig(**special)
    model.save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path
