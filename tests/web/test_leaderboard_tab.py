import re
from pathlib import Path
from typing import TYPE_CHECKING

import httpx
import pytest

from reasongenrm.config import DeployConfig, GateConfig, ModelConfig, RunConfig
from reasongenrm.evaluation.gate import select_winner
from reasongenrm.store.artifacts import ArtifactRef, Store, read_file
from reasongenrm.store.run_records import RunInputs, TaskRecord, end_run, new_run, save_run
from reasongenrm.store.seaweed import EmbeddedStore
from reasongenrm.store.stage import Stage
from reasongenrm.web.board import Shelf
from reasongenrm.web.markup import show_board
from tests.evaluation.test_gate import evaluation_of
from tests.judges import always_a, benchmark_of, contrarian, oracle

pytestmark = [pytest.mark.browser, pytest.mark.slow]

if TYPE_CHECKING:
    from playwright.sync_api import Page

INPUTS = RunInputs(preferences_uri="p", benchmark_uri="b", model_uri="m", teacher_uri="t")


def filled(store: Store, folder: Path) -> tuple[str, dict[str, ArtifactRef], ArtifactRef]:
    """A finished run of three judges, one with a hostile name, and its report."""
    benchmark = benchmark_of(folder, {"sums": 12})
    judges = {"base": always_a, "sft": oracle, "<img src=x onerror=alert(1)>": contrarian}
    evaluations = {variant: evaluation_of(store, variant, benchmark, judge) for variant, judge in judges.items()}
    config = GateConfig(candidates=("sft",))
    decision = select_winner(store, config, {v: evaluations[v] for v in ("base", "sft")}, {}, DeployConfig())
    run = new_run(INPUTS, RunConfig())
    refs = [*evaluations.values(), decision]
    tasks = tuple(TaskRecord(name=ref.stage, seconds=1, reused=False, ref=ref) for ref in refs)
    save_run(store, end_run(run.model_copy(update={"tasks": tasks}), "finished", 0))
    return run.run_id, evaluations, decision


def test_model_is_called_by_its_base_and_its_digest_is_a_hover_away(store: Store, tmp_path: Path) -> None:
    metrics = {"source": "/models/Qwen2.5-0.5B-Instruct/"}
    with Stage(store, "import_model", ModelConfig(), {"model": "sha256:0"}, {}) as stage:
        stage.add_bytes("config.json", b"{}")
        base = stage.finish({"num_in": 1, "num_out": 1}, metrics)
    evaluation_of(store, "base", benchmark_of(tmp_path, {"sums": 12}), oracle, base)
    shown = show_board(Shelf(store.uri).board(), "")
    assert re.search(f'<span title="[^"]*{base.digest}" tabindex="0">Qwen2.5-0.5B-Instruct</span>', shown)


@pytest.mark.browser
@pytest.mark.slow
def test_leaderboard_shows_the_stores_judges_and_opens_their_report(
    page: "Page", page_store: Store, page_url: str, tmp_path: Path
) -> None:
    run_id, _, decision = filled(page_store, tmp_path)
    page.get_by_role("tab", name="Leaderboard").click()
    page.get_by_role("row").nth(1).wait_for()
    rows = [[*row.locator("th, td").all_inner_texts()] for row in page.get_by_role("row").all()]
    assert rows[0] == [
        "Judge",
        "Base model",
        "Accuracy %",
        "Consistent %",
        "Unparsed %",
        "Tokens",
        "Date",
        "Run",
        "Report",
    ]
    # always [[A]]: half of the judgments are right, never consistent; the contrarian is always wrong, and consistent.
    assert [[row[0], row[2].split()[0], *row[3:6], row[7]] for row in rows[1:]] == [
        ["ReasonGenRM-sft", "100.0", "100.0", "0.0", "10", run_id],
        ["base", "50.0", "0.0", "0.0", "10", run_id],
        ["<img src=x onerror=alert(1)>", "0.0", "100.0", "0.0", "10", run_id],
    ]
    assert rows[3][8] == "-"
    assert page.locator("#rg-board img").count() == 0
    with page.expect_popup() as popup:
        page.get_by_role("link", name="Report of ReasonGenRM-sft").click()
    popup.value.get_by_text("ReasonGenRM-sft passes the gate").first.wait_for()
    assert popup.value.url == f"{page_url}/reports/{decision.digest.removeprefix('sha256:')}"
    assert popup.value.evaluate("window.origin") == "null"  # sandboxed: an origin of its own, and no scripts
    policy = httpx.get(popup.value.url).headers["content-security-policy"]
    assert re.match(r"sandbox; default-src 'none'; ", policy)
    popup.value.close()


def test_leaderboard_is_not_empty_while_the_store_is_read_and_fits_a_phone(page: "Page", page_store: Store) -> None:
    del page_store  # filled by the test before
    page.set_viewport_size({"width": 390, "height": 844})
    page.get_by_role("tab", name="Leaderboard").click()
    page.locator("#rg-board .rg-board, #rg-board .rg-notice").first.wait_for()
    page.get_by_role("row").nth(1).wait_for()
    assert page.evaluate("document.documentElement.scrollWidth") == 390
    box = page.locator(".rg-scroll").first
    assert box.evaluate("box => box.scrollWidth <= box.clientWidth")
    assert page.locator(".rg-board tbody tr").first.inner_text().startswith("ReasonGenRM-sft")
    page.set_viewport_size({"width": 1280, "height": 900})


def test_what_is_no_report_is_not_found(page_url: str) -> None:
    for name in ("0" * 64, "..%2f..%2fruns", "%2e%2e"):
        reply = httpx.get(f"{page_url}/reports/{name}")
        assert reply.status_code == 404, reply.text


def test_judge_is_shown_with_its_runs_and_the_newest_report_that_has_it(store: Store, tmp_path: Path) -> None:
    run_id, evaluations, decision = filled(store, tmp_path)
    shelf = Shelf(store.uri)
    (section,) = shelf.board().sections
    assert [(e.evaluation.variant, e.run_ids) for e in section.entries][:2] == [("sft", (run_id,)), ("base", (run_id,))]
    digest = decision.digest.removeprefix("sha256:")
    assert [entry.report for entry in section.entries] == [digest, digest, None]
    assert shelf.report(digest) == read_file(decision, "report.html")
    assert shelf.report(evaluations["sft"].digest.removeprefix("sha256:")) is None


def test_report_is_found_before_anybody_looked_at_the_leaderboard(store: Store, tmp_path: Path) -> None:
    _, _, decision = filled(store, tmp_path)
    assert Shelf(store.uri).report(decision.digest.removeprefix("sha256:")) == read_file(decision, "report.html")


def test_judges_of_other_rows_are_kept_apart(store: Store, tmp_path: Path) -> None:
    evaluation_of(store, "base", benchmark_of(tmp_path, {"sums": 12}, "a.jsonl"), oracle)
    evaluation_of(store, "sft", benchmark_of(tmp_path, {"sums": 13}, "b.jsonl"), oracle)
    sections = Shelf(store.uri).board().sections
    assert sorted(section.benchmark.num_rows for section in sections) == [12, 13]


def test_store_without_evaluations_says_how_to_get_some(store: Store) -> None:
    assert "No run has evaluated a judge here yet" in show_board(Shelf(store.uri).board(), "")


def test_folder_that_is_not_there_is_said_and_not_made(tmp_path: Path) -> None:
    folder = tmp_path / "<b>none"
    told = show_board(Shelf(str(folder)).board(), "")
    assert "No store yet" in told
    assert "&lt;b&gt;none" in told
    assert not folder.exists()
    (tmp_path / "other").mkdir()
    assert "No store yet" in show_board(Shelf(str(tmp_path / "other")).board(), "")
    assert not list((tmp_path / "other").iterdir())


def test_store_that_refuses_is_told_in_words(store_env: EmbeddedStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    told = show_board(Shelf(f"{store_env.uri}/x").board(), "")
    assert "The store cannot be read" in told
    assert "Traceback" not in told
