"""Every error of the judge's client, in one tree.

    EngineError
    `- JudgeClientError           no judgment came back
       |- JudgeKeyError           the key is missing, wrong, or may not do this (401, 403)
       |- NotAJudgeError          what answers at the URL is no judge service, or one of another version
       |- JudgeRequestError       the judge refuses this request (400, 404, 413, 422), as it will the next time
       |  `- JudgeTooLongError    question and answers do not fit into the model's context
       |- JudgeBusyError          429, after all retries
       `- JudgeUnavailableError   no connection, a time-out, or a 5xx, after all retries

Each has `status` (HTTP; None if there was no reply), `code` (for programs), `param` (the field at fault), `request_id`
(as in the server's log) and `num_chars_over` (about how many characters too many there are, where that is known).
"""

import httpx
from pydantic import ValidationError

from reasongenrm.errors import EngineError
from reasongenrm.http_client import without_login, words_of
from reasongenrm.judge.api import ErrorDetail, ErrorResponse

EXCERPT_CHARS = 300  # of a reply, in messages


class JudgeClientError(EngineError):
    """The judge gave no judgment."""

    def __init__(
        self,
        message: str,
        *,
        code: str,
        status: int | None = None,
        param: str | None = None,
        request_id: str | None = None,
        num_chars_over: int | None = None,
    ) -> None:
        super().__init__(message)
        self.code, self.status, self.param, self.request_id = code, status, param, request_id
        self.num_chars_over = num_chars_over


class JudgeKeyError(JudgeClientError):
    """The key is missing or wrong."""


class NotAJudgeError(JudgeClientError):
    """What answers is no judge service of this version."""


class JudgeRequestError(JudgeClientError):
    """The judge refuses this request; to send it again is of no use."""


class JudgeTooLongError(JudgeRequestError):
    """Question and answers do not fit into the model's context."""


class JudgeBusyError(JudgeClientError):
    """The judge had too many requests, after all retries."""


class JudgeUnavailableError(JudgeClientError):
    """The judge or its predictor cannot be reached or failed, after all retries."""


_ADVICE = {
    JudgeKeyError: "Give the judge's key as api_key or in JUDGE_API_KEY; it is not the predictor's.",
    JudgeBusyError: "Lower the concurrency, or give the judge more replicas.",
    JudgeUnavailableError: "Look at the judge's log and at its predictor.",
}


def error_of_reply(where: str, response: httpx.Response) -> JudgeClientError:
    """The error that a reply of status 300 or above stands for; its body must have been read."""
    detail = _detail(response)
    status = response.status_code
    request_id = (detail.request_id if detail else None) or response.headers.get("x-request-id")
    if detail is None and status not in (401, 403, 429) and status < 500:
        to = response.headers.get("location")
        found = f"a redirect to {without_login(to)}" if to else f"HTTP {status}: {_excerpt(response)}"
        message = (
            f"{where}: {found}; expected a judge service (`reasongenrm judge-server`). Check the URL: "
            "it is the judge's root, without /v1, and not the predictor's."
        )
        return NotAJudgeError(message, code="not_a_judge", status=status, request_id=request_id)
    said = detail or ErrorDetail(message=_excerpt(response), code=f"http_{status}")
    return error_of_detail(where, said, status, request_id)


def error_of_detail(where: str, detail: ErrorDetail, status: int | None, request_id: str | None) -> JudgeClientError:
    """The error for what a judge said."""
    kind = _kind(status, detail.code)
    said = f"{detail.message.rstrip()} (in {detail.param})" if detail.param else detail.message.rstrip()
    message = f"{where}: {f'HTTP {status}: ' if status else ''}{said}{'' if said.endswith(('.', '!')) else '.'}"
    if kind in _ADVICE:
        message += f" {_ADVICE[kind]}"
    if request_id:
        message += f" Request {request_id}."
    return kind(
        message,
        code=detail.code,
        status=status,
        param=detail.param,
        request_id=request_id,
        num_chars_over=detail.num_chars_over,
    )


def _kind(status: int | None, code: str) -> type[JudgeClientError]:
    if code == "too_long":
        return JudgeTooLongError
    if status in (401, 403):
        return JudgeKeyError
    if status == 429:
        return JudgeBusyError
    if status is None or status >= 500:
        return JudgeUnavailableError
    return JudgeRequestError


def _detail(response: httpx.Response) -> ErrorDetail | None:
    try:
        return ErrorResponse.model_validate_json(response.content).error
    except ValidationError:
        return None


def _excerpt(response: httpx.Response) -> str:
    return words_of(response.text)[:EXCERPT_CHARS] or "no text"
