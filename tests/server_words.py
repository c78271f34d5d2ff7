"""How servers refuse one request, in the shapes of their own sources: (status, body) by server.

Sources: vLLM, vllm/entrypoints/openai (0.32; before 0.10 the error object stood by itself); sgl-project/sglang,
python/sglang/srt/managers/tokenizer_manager.py and entrypoints/openai/serving_base.py; ggml-org/llama.cpp,
tools/server/server-context.cpp; huggingface/text-generation-inference, router/src/validation.rs and server.rs;
OpenAI's API reference, "Error codes"; Microsoft Learn, "Azure OpenAI content filtering"; OpenRouter, "Errors".
"""

from typing import Any

Refusal = tuple[int, dict[str, Any]]


def _openai(message: str, **more: Any) -> dict[str, Any]:
    return {"error": {"message": message, "type": "invalid_request_error", "param": None, "code": None, **more}}


TOO_LONG: dict[str, Refusal] = {
    "vllm": (
        400,
        _openai(
            "This model's maximum context length is 4096 tokens. However, your prompt contains at least 8192 input "
            "tokens. Please reduce the length of the input prompt.",
            type="BadRequestError",
            param="input_tokens",
            code=400,
        ),
    ),
    "vllm before 0.10": (
        400,
        {
            "object": "error",
            "message": "This model's maximum context length is 4096 tokens. However, you requested 8192 tokens (8000 "
            "in the messages, 192 in the completion). Please reduce the length of the messages or completion.",
            "type": "BadRequestError",
            "param": None,
            "code": 400,
        },
    ),
    "sglang": (
        400,
        {
            "object": "error",
            "message": "The input (8192 tokens) is longer than the model's context length (4096 tokens).",
            "type": "BadRequestError",
            "param": None,
            "code": 400,
        },
    ),
    "sglang, with max_tokens": (
        400,
        {
            "object": "error",
            "message": "Requested token count exceeds the model's maximum context length of 4096 tokens. You requested "
            "a total of 8192 tokens: 4000 tokens from the input messages and 4192 tokens for the completion. Please "
            "reduce the number of tokens in the input messages or the completion to fit within the limit.",
            "type": "BadRequestError",
            "param": None,
            "code": 400,
        },
    ),
    "llama.cpp": (
        400,
        {
            "error": {
                "code": 400,
                "message": "request (8192 tokens) exceeds the available context size (4096 tokens), try increasing it",
                "type": "exceed_context_size_error",
                "n_prompt_tokens": 8192,
                "n_ctx": 4096,
            }
        },
    ),
    "tgi": (
        422,
        {
            "error": "Input validation error: `inputs` tokens + `max_new_tokens` must be <= 4096. Given: 8192 `inputs` "
            "tokens and 100 `max_new_tokens`",
            "error_type": "validation",
        },
    ),
    "tgi, prompt alone": (
        422,
        {
            "error": "Input validation error: `inputs` must have less than 4096 tokens. Given: 8192",
            "error_type": "validation",
        },
    ),
    "openai": (
        400,
        _openai(
            "This model's maximum context length is 4096 tokens. However, your messages resulted in 8192 tokens. "
            "Please reduce the length of the messages.",
            param="messages",
            code="context_length_exceeded",
        ),
    ),
    "openai, reasoning models": (
        400,
        _openai(
            "Input tokens exceed the configured limit of 4096 tokens. Your messages resulted in 8192 tokens. Please "
            "reduce the length of the messages.",
            param="messages",
            code="context_length_exceeded",
        ),
    ),
}
FITTING = dict.fromkeys(TOO_LONG, 0.5)  # the context is half of what was sent

FILTERED: dict[str, Refusal] = {
    "azure": (
        400,
        {
            "error": {
                "message": "The response was filtered due to the prompt triggering Azure OpenAI's content management "
                "policy. Please modify your prompt and retry. To learn more about our content filtering policies "
                "please read our documentation: https://go.microsoft.com/fwlink/?linkid=2198766",
                "type": None,
                "param": "prompt",
                "code": "content_filter",
                "status": 400,
                "innererror": {
                    "code": "ResponsibleAIPolicyViolation",
                    "content_filter_result": {"violence": {"filtered": True, "severity": "medium"}},
                },
            }
        },
    ),
    "openai": (
        400,
        _openai(
            "Your request was rejected as a result of our safety system.",
            code="content_policy_violation",
        ),
    ),
    "openai, reasoning models": (
        400,
        _openai(
            "Invalid prompt: your prompt was flagged as potentially violating our usage policy. Please try again with "
            "a different prompt.",
            code="invalid_prompt",
        ),
    ),
    "openrouter": (
        403,
        {
            "error": {
                "code": 403,
                "message": "Your chosen model requires moderation and your input was flagged",
                "metadata": {"reasons": ["violence"], "flagged_input": "...", "provider_name": "OpenAI"},
            }
        },
    ),
}
