"""What the trainers' routes need of the judge service, and what they have in common."""

import asyncio
import uuid
from collections.abc import Awaitable, Iterable
from typing import Any, Protocol, TypeVar

from fastapi import Request

from reasongenrm.judge.api import (
    ErrorResponse,
    PairwiseRequest,
    PairwiseResponse,
    PointwiseRequest,
    PointwiseResponse,
)

_Result = TypeVar("_Result")

# What a route may answer instead of a reward; the service's app turns a JudgeError into it.
ERRORS: dict[int | str, dict[str, Any]] = {
    status: {"model": ErrorResponse} for status in (401, 422, 429, 502, 503, 504)
}


class JudgesAnswers(Protocol):
    """The part of `service.JudgeService` that is asked here; its JudgeErrors pass through."""

    model_name: str

    async def pairwise(self, request: PairwiseRequest, request_id: str) -> PairwiseResponse:
        """One pair."""

    async def pointwise(self, request: PointwiseRequest, request_id: str) -> PointwiseResponse:
        """One answer."""


def request_id_of(request: Request) -> str:
    """The id that the caller sent, or a new one."""
    return request.headers.get("x-request-id") or uuid.uuid4().hex


async def all_of(calls: Iterable[Awaitable[_Result]]) -> list[_Result]:
    """The results of calls made side by side; the first error cancels the others and is raised as itself."""

    async def one(call: Awaitable[_Result]) -> _Result:
        return await call

    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(one(call)) for call in calls]
    except ExceptionGroup as failures:
        first = failures.exceptions[0]
        raise first from first.__cause__
    return [task.result() for task in tasks]
