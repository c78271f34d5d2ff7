import subprocess
import sys
from pathlib import Path

import httpx
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Route

from reasongenrm.web.guard import MAX_BODY_BYTES, PageGuard, TooManyError, Visitors
from tests.endpoints import serving
from tests.web.conftest import page_process
from tests.web.fake_judge import KEY


def test_health_route_answers_probes(page_url: str) -> None:
    reply = httpx.get(f"{page_url}/healthz")
    assert (reply.status_code, reply.text) == (200, "ok")


def test_key_and_judges_address_never_reach_the_browser(page_url: str, shared_judge: tuple[object, str]) -> None:
    for path in ("/", "/config", "/theme.css"):
        text = httpx.get(page_url + path).raise_for_status().text
        assert KEY not in text
        assert shared_judge[1] not in text


@pytest.mark.parametrize(
    ("method", "path"),
    [
        *(
            ("POST", f"/gradio_api/{name}")
            for name in ("upload", "run/run", "call/run", "process_recording", "vibe-edit")
        ),
        *(
            ("GET", f"/gradio_api/{name}")
            for name in ("file=/etc/passwd", "proxy=http://127.0.0.1:9/", "info", "upload_progress")
        ),
        *(
            ("GET", path)
            for path in ("/docs", "/openapi.json", "/monitoring", "/monitoring/summary", "/gradio_api/runs")
        ),
        ("POST", "/login"),
    ],
)
def test_gradios_other_routes_are_closed(page_url: str, method: str, path: str) -> None:
    assert httpx.request(method, page_url + path, content=b"{}").status_code == 404


def test_large_and_endless_bodies_are_refused(page_url: str) -> None:
    url = f"{page_url}/gradio_api/queue/join"
    assert httpx.post(url, content=b"x" * (MAX_BODY_BYTES + 1)).status_code == 413
    assert httpx.post(url, content=iter([b"x"])).status_code == 411
    assert httpx.delete(url).status_code == 405


def test_page_may_load_from_its_own_server_only(page_url: str) -> None:
    headers = httpx.get(page_url).headers
    assert "default-src 'self'" in headers["content-security-policy"]
    assert "connect-src 'self'" in headers["content-security-policy"]
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["referrer-policy"] == "no-referrer"


def test_path_of_an_ingress_is_cut_off_if_it_is_still_there() -> None:
    def tell(request: Request) -> PlainTextResponse:
        return PlainTextResponse(request.url.path)

    with serving(PageGuard(Starlette(routes=[Route("/healthz", tell), Route("/", tell)]), "/judge")) as url:
        paths = ("/judge/healthz", "/healthz", "/judge", "/judge/", "/judgement", "/judge/judge/healthz")
        replies = [httpx.get(url + path) for path in paths]
    assert [reply.text for reply in replies[:4]] == ["/healthz", "/healthz", "/", "/"]
    assert [reply.status_code for reply in replies[4:]] == [404, 404]


def test_page_below_a_path_names_its_parts_there(tmp_path: Path) -> None:
    with page_process(tmp_path, "--judge", "http://127.0.0.1:9", "--root-path", "/judge") as url:
        config = httpx.get(f"{url}/config").json()
        assert config["root"].endswith("/judge")
        assert httpx.get(f"{url}/theme.css").status_code == 200


def test_one_visitor_may_have_so_much_under_way_and_no_more() -> None:
    visitors = Visitors(2)
    with visitors.one_more("10.0.0.1"), visitors.one_more("10.0.0.1"):
        with pytest.raises(TooManyError), visitors.one_more("10.0.0.1"):
            pass
        with visitors.one_more("10.0.0.2"):
            pass
    with visitors.one_more("10.0.0.1"), visitors.one_more("10.0.0.1"):
        pass


def test_page_loads_no_model_and_a_wrong_address_is_an_error_before_it_starts() -> None:
    code = (
        "import sys, reasongenrm.cli; assert 'gradio' not in sys.modules\n"
        "from reasongenrm.web.site import WebSettings, make_app\n"
        "from reasongenrm.errors import ConfigError\n"
        "assert 'gradio' in sys.modules; assert not {'torch', 'transformers'} & {*sys.modules}\n"
        "try: make_app(WebSettings('nowhere', 'store'))\n"
        "except ConfigError as error: assert 'nowhere' in str(error)\n"
        "else: raise AssertionError"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
