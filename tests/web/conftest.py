"""One page process, one fake judge behind it and one Chromium for all tests of the page."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import httpx
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from reasongenrm.store.artifacts import Store
from reasongenrm.store.seaweed import EmbeddedStore
from tests.endpoints import serving
from tests.evaluation.test_report_page import CHROMIUM, CHROMIUM_FLAGS
from tests.waiting import HANG_SECONDS
from tests.web.fake_judge import KEY, FakeJudge

if TYPE_CHECKING:
    from playwright.sync_api import Browser, BrowserContext, Page


@pytest.fixture(scope="session")
def shared_judge() -> Iterator[tuple[FakeJudge, str]]:
    judge = FakeJudge()
    with serving(judge.app) as url:
        yield judge, url


@pytest.fixture
def judge(shared_judge: tuple[FakeJudge, str]) -> FakeJudge:
    """The judge behind the page, as at its start."""
    shared_judge[0].reset()
    return shared_judge[0]


@contextmanager
def page_process(folder: Path, *arguments: str, key: str = KEY) -> Iterator[str]:
    """`reasongenrm web` as its users start it; yields the page's address."""
    env = os.environ | {"JUDGE_API_KEY": key, "TMPDIR": str(folder), "HOME": "/nonexistent"}
    log_path = folder / "web.log"
    with log_path.open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-W", "error", "-m", "reasongenrm", "web", "--port", "0", *arguments],
            stdout=log,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            env=env,
            cwd=folder,
        )
    try:
        yield _address(process, log_path)
    finally:
        process.terminate()
        assert process.wait(HANG_SECONDS) in (0, 143), log_path.read_text()
    said = log_path.read_text()
    assert "Traceback" not in said, said
    assert "Warning" not in said, said


def _address(process: "subprocess.Popen[bytes]", log_path: Path) -> str:
    deadline = time.monotonic() + HANG_SECONDS
    while time.monotonic() < deadline and process.poll() is None:
        for word in log_path.read_text().split():
            if word.startswith("http://") and httpx.get(f"{word}/healthz").text == "ok":
                return word
        time.sleep(0.05)
    raise AssertionError(f"the page did not start: {log_path.read_text()}")


@pytest.fixture(scope="session")
def page_store(store_env: EmbeddedStore) -> Store:
    """The store behind the page; test_leaderboard_tab.py fills it."""
    return Store(f"{store_env.uri}/web-page")


@pytest.fixture(scope="session")
def page_url(
    tmp_path_factory: pytest.TempPathFactory, shared_judge: tuple[FakeJudge, str], page_store: Store
) -> Iterator[str]:
    """The page's address."""
    with page_process(tmp_path_factory.mktemp("web"), "--judge", shared_judge[1], "--store", page_store.uri) as url:
        yield url


@pytest.fixture(scope="module")  # not longer: while it is open, this thread has a running event loop
def browser() -> Iterator["Browser"]:
    if not CHROMIUM.is_file():
        pytest.skip(f"{CHROMIUM} is not there: `apt-get install chromium` brings it")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=[*CHROMIUM_FLAGS])
        yield chromium
        chromium.close()


@pytest.fixture(scope="module")
def context(browser: "Browser") -> Iterator["BrowserContext"]:
    """One visitor's browser; what the page is made of is loaded once."""
    context = browser.new_context(viewport={"width": 1280, "height": 900})
    context.set_default_timeout(1000 * HANG_SECONDS)
    yield context
    context.close()


@contextmanager
def opened(context: "BrowserContext", url: str) -> Iterator["Page"]:
    """The page; at the end, nobody but its own server was asked, and no script failed."""
    page = context.new_page()
    asked: list[str] = []
    said: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on("console", lambda message: said.append(message.text) if message.type == "error" else None)
    page.goto(url)
    page.get_by_label("Question", exact=True).wait_for()
    yield page
    page.close()
    assert [address for address in asked if not address.startswith((url, "data:", "blob:"))] == []
    assert said == []


@pytest.fixture
def page(context: "BrowserContext", page_url: str, judge: FakeJudge) -> Iterator["Page"]:  # noqa: ARG001 - resets it
    """The page, open at desktop width."""
    with opened(context, page_url) as page:
        yield page


@pytest.fixture
def image_host() -> Iterator[tuple[str, list[str]]]:
    """Another server, and the paths that it was asked for."""
    asked: list[str] = []

    def answer(request: Request) -> Response:
        asked.append(request.url.path)
        return Response(b"", media_type="image/png")

    with serving(Starlette(routes=[Route("/{path:path}", answer)])) as address:
        yield address, asked
