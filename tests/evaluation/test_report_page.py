import math
import re
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from reasongenrm.config import GateConfig
from reasongenrm.data.benchmarks import load_benchmark
from reasongenrm.data.sections import OFFICIAL_ROWS
from reasongenrm.evaluation.calibration import fit
from reasongenrm.evaluation.decision import decide
from reasongenrm.evaluation.gate import differences_to_base
from reasongenrm.evaluation.metrics import row_results
from reasongenrm.evaluation.report import Curve, LineageStep, Report, build_report
from reasongenrm.evaluation.report_page import KEPT_CHARS, SHOWN_CHARS, nice_ticks, plot, render_html, trailing_mean
from reasongenrm.records import JudgePrompt, Judgment, Verdict
from tests.judges import always_a, contrarian, evaluated, judged, oracle, row, silent, write_rows

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

CHROMIUM = Path("/usr/bin/chromium")
# Without these Chromium asks for Google's hosts at every start.
CHROMIUM_FLAGS = (
    *("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
)
HOSTILE = (
    '</div></details><script>document.title="owned"</script><img src="http://127.0.0.1:9/x" onerror="document.title=1">'
)


LENIENT = GateConfig(
    candidates=("dpo", "sft"), min_accuracy_low=0.3, min_consistent_fraction=0.3, max_unparsed_fraction=0.5
)


def mixed(prompt: JudgePrompt, vote: int) -> Verdict | None:
    """Right for half of the rows; the others go wrong in every way."""
    number = int(prompt.pair_id.rsplit("/", 1)[1])
    return [oracle, oracle, oracle, always_a, contrarian, silent][number % 6](prompt, vote)


def hostile_log(num_steps: int) -> list[dict[str, Any]]:
    return [
        {"step": n, "loss": 1 / n, "rewards/margins": 0.1 * n, "rewards/accuracies": 0.5}
        for n in range(1, num_steps + 1)
    ]


def full_report(folder: Path, sizes: dict[str, int], text: str = "Is it so?") -> Report:
    """Four variants, a decision, curves, lineage; `text` is in every place that comes from outside."""
    rows = [
        row(s, n, prompt=f"{text} {n}", chosen=f"Yes. {text}", rejected=f"No. {text} " * 60, chosen_model=text)
        for s, size in sizes.items()
        for n in range(size)
    ]
    benchmark = load_benchmark(write_rows(folder / "bench.jsonl", rows))
    judges = {"base": always_a, "genrm": oracle, "sft": mixed, "dpo": mixed}
    judgments: dict[str, list[Judgment]] = {
        variant: [
            judgment.model_copy(update={"reason": None if variant in ("base", "genrm") else text, "answer": text})
            for judgment in judged(benchmark, judge)
        ]
        for variant, judge in judges.items()
    }
    evaluations = {variant: evaluated(benchmark, judge, variant) for variant, judge in judges.items()}
    evaluations["dpo"] = evaluations["dpo"].model_copy(
        update={"model": f"s3://bucket/{'0123456789abcdef' * 8}/{text[:300]}"}
    )
    differences = differences_to_base(evaluations, {v: row_results(found) for v, found in judgments.items()})
    step = LineageStep(
        stage="prepare_pairs",
        title="prepare_pairs",
        reads=(),
        uri="s3://bucket/prepare_pairs/0123456789abcdef",
        digest="sha256:" + "0123456789abcdef" * 4,
        created_at="2026-11-23T08:00:00+00:00",
        code_version="0.1.0",
        source_sha256="0" * 64,
        counts={"num_in": 1240, "num_out": 1180, "num_dropped_same_answer": 60, "num_dropped_other": 0},
        config={"preferences": text[:300], "limit": None},
    )
    return build_report(
        evaluations,
        judgments,
        benchmark.rows,
        differences=differences,
        decision=decide(LENIENT, evaluations, differences),
        training_logs={"genrm": hostile_log(3), "sft": hostile_log(90), "dpo": hostile_log(40)},
        lineage=[step],
    )


class Outline(HTMLParser):
    """Tags with their attributes, and the text outside style, of a page."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self._in_style = False
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self._in_style = tag == "style"

    def handle_endtag(self, tag: str) -> None:
        self._in_style = self._in_style and tag != "style"

    def handle_data(self, data: str) -> None:
        if not self._in_style:
            self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())


def test_page_says_who_won_on_what_and_lays_the_four_side_by_side(tmp_path: Path) -> None:
    text = Outline(render_html(full_report(tmp_path, {"hep-go": 12, "donotanswer": 6}))).text
    assert "ReasonGenRM-dpo passes the gate" in text
    assert "Partial benchmark: 18 of RewardBench's 2,985 rows were judged." in text
    for name in ("base", "GenRM", "ReasonGenRM-sft", "ReasonGenRM-dpo", "Safety", "Reasoning", "This run (partial)"):
        assert name in text
    assert "85.21" in text  # the published Llama-3.1-8B ReasonGenRM-dpo
    assert "91.69 *" in text
    assert "1,240 \N{RIGHTWARDS ARROW} 1,180" in text
    assert "60 dropped: same answer" in text
    assert "dropped: other" not in text


def test_names_are_explained_in_a_line_each(tmp_path: Path) -> None:
    text = Outline(render_html(full_report(tmp_path, {"sums": 12}))).text
    for line in (
        "base the model as it came, asked in plain chat; not trained",
        "GenRM base, trained to write the verdict at once, without a reason",
        "ReasonGenRM-sft base, trained to write a reason, then the verdict, on the teacher's best reasons",
        "ReasonGenRM-dpo sft, trained further to prefer the better of its own reasons (DPO)",
        "the gate the checks that a judge must pass to be served; the best that passes them all is the winner",
    ):
        assert line in text


def test_gain_over_a_base_without_verdicts_says_so(tmp_path: Path) -> None:
    report = full_report(tmp_path, {"sums": 12})
    assert "which count one half" not in Outline(render_html(report)).text  # this base has a verdict every time
    base, *others = report.evaluations
    assert base.variant == "base"
    silent_base = base.model_copy(update={"unparsed_fraction": 0.958})
    text = Outline(render_html(report.model_copy(update={"evaluations": (silent_base, *others)}))).text
    said = "base gave no verdict in 95.8\N{NO-BREAK SPACE}% of its judgments, which count one half"
    assert " ".join(said.split()) in text


def test_whole_benchmark_is_not_called_partial(tmp_path: Path) -> None:
    text = Outline(render_html(full_report(tmp_path, OFFICIAL_ROWS, "so?"))).text
    assert "artial" not in text
    assert "All of the same 2,985 rows." in text


def test_benchmark_without_sections_is_compared_by_pattern_only(tmp_path: Path) -> None:
    text = Outline(render_html(full_report(tmp_path, {"sums": 12, "products": 12}))).text
    assert "not RewardBench. What can be compared is the pattern" in text
    assert "subset by subset" in text
    assert "artial" not in text


def test_judge_without_a_run_gets_a_page_of_its_own(tmp_path: Path) -> None:
    benchmark = load_benchmark(write_rows(tmp_path / "b.jsonl", [row("sums", n) for n in range(12)]))
    evaluations = {"mine": evaluated(benchmark, mixed, "mine")}
    text = Outline(render_html(build_report(evaluations, {"mine": judged(benchmark, mixed)}, benchmark.rows))).text
    assert "mine scores 66.7 %" in text
    for absent in ("The gate", "Training", "Where the data went", "Against the base model"):
        assert absent not in text


def test_calibration_is_shown_for_the_judges_that_have_one(tmp_path: Path) -> None:
    report = full_report(tmp_path, {"hep-go": 12, "donotanswer": 6})
    assert "calibrated" not in Outline(render_html(report)).text
    calibration = fit([0.9] * 8 + [0.1] * 8, [True] * 6 + [False] * 2 + [True] * 2 + [False] * 6)
    *others, last = report.evaluations
    with_one = last.model_copy(update={"calibration": calibration})
    text = Outline(render_html(report.model_copy(update={"evaluations": (*others, with_one)}))).text
    # Said 0.9 where 0.75 was right, then 0.7 (tests/evaluation/test_calibration.py); log(9) / log(7/3) = 2.59.
    assert "\N{EN DASH} \N{EN DASH} \N{EN DASH} 15.0 5.0 calibrated" in text
    assert "2.59 +0.00" in text


def test_perfect_judge_has_an_empty_gallery(tmp_path: Path) -> None:
    benchmark = load_benchmark(write_rows(tmp_path / "b.jsonl", [row("sums", n) for n in range(12)]))
    report = build_report(
        {"mine": evaluated(benchmark, oracle, "mine")}, {"mine": judged(benchmark, oracle)}, benchmark.rows
    )
    assert "Every row was right in both orders." in Outline(render_html(report)).text


def test_page_asks_for_nothing_and_runs_nothing(tmp_path: Path) -> None:
    outline = Outline(render_html(full_report(tmp_path, {"sums": 12}, HOSTILE)))
    names = {tag for tag, _ in outline.tags}
    assert not names & {"script", "img", "iframe", "object", "embed", "form", "base", "audio", "video", "source"}
    for tag, attributes in outline.tags:
        assert not [name for name in attributes if name.startswith("on")], tag
        for name in ("src", "href", "xlink:href", "srcset", "action", "data"):
            assert (attributes.get(name) or "#").startswith(("#", "data:,")), (tag, attributes)
    assert HOSTILE.split()[0] in outline.text
    (policy,) = [a["content"] for tag, a in outline.tags if a.get("http-equiv") == "Content-Security-Policy"]
    assert policy is not None
    assert policy.startswith("default-src 'none'")


def test_tags_are_closed_in_order_whatever_the_texts(tmp_path: Path) -> None:
    class Balance(HTMLParser):
        void = frozenset({"meta", "link", "wbr"})
        open_tags: list[str] = []  # noqa: RUF012 - one parser

        def handle_starttag(self, tag: str, attrs: object) -> None:  # noqa: ARG002
            if tag not in self.void:
                self.open_tags.append(tag)

        def handle_startendtag(self, tag: str, attrs: object) -> None:
            """A tag that closes itself (SVG)."""

        def handle_endtag(self, tag: str) -> None:
            assert self.open_tags.pop() == tag, self.getpos()

    balance = Balance()
    balance.feed(render_html(full_report(tmp_path, {"hep-go": 12, "donotanswer": 6}, HOSTILE)))
    assert balance.open_tags == []


def test_long_text_is_folded_and_a_huge_one_left_out(tmp_path: Path) -> None:
    page = render_html(full_report(tmp_path, {"sums": 6}, "word " * 10000))
    longest = max(len(word) for word in Outline(page).words)
    assert SHOWN_CHARS < longest <= KEPT_CHARS
    assert "42,000 characters are left out of this page; judgments.jsonl and rows.jsonl have them." in page


def test_every_picture_has_a_text(tmp_path: Path) -> None:
    outline = Outline(render_html(full_report(tmp_path, {"hep-go": 12})))
    pictures = [attributes for tag, attributes in outline.tags if tag == "svg"]
    assert len(pictures) == 4 * (1 + 1 + 1) + 5  # overall, one section, one subset; five curves
    assert all(p["role"] == "img" and p["aria-label"] for p in pictures)
    assert "ReasonGenRM-sft, loss: 1 at step 1, 0.0111 at step 90" in {p["aria-label"] for p in pictures}


def test_page_is_the_same_for_the_same_report(tmp_path: Path) -> None:
    report = full_report(tmp_path, {"sums": 6})
    assert render_html(report) == render_html(Report.model_validate_json(report.model_dump_json()))


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (0.0, 1.0, [0, 0.25, 0.5, 0.75, 1]),
        (0.45, 0.7, [0.4, 0.5, 0.6, 0.7]),
        (-0.2, 0.9, [-0.5, 0, 0.5, 1]),
        (0.0, 0.0, [0, 0.25]),
        (2.0, 2.0, [2, 2.5]),
        (2.0, 2.001, [2, 3]),
        (0.6931, 0.6931 + 1e-15, [0.6, 0.8]),
        (0.0001, 0.0003, [0.0001, 0.00015, 0.0002, 0.00025, 0.0003]),
    ],
)
def test_ticks_are_round_and_take_everything_in(low: float, high: float, expected: list[float]) -> None:
    assert nice_ticks(low, high) == pytest.approx(expected)


def test_trailing_mean_is_over_the_last_values() -> None:
    assert trailing_mean([1, 2, 3, 6], 2) == [1, 1.5, 2.5, 4.5]


def test_curve_fills_its_box_from_the_first_step_to_the_last() -> None:
    drawn = plot(Curve(variant="sft", name="loss", steps=(10, 20, 30), values=(1.0, 0.5, 0.0)))
    assert drawn.points == "0,0 50,50 100,100"
    assert (drawn.ticks[0].place, drawn.ticks[0].label) == (100, "0")
    assert (drawn.smooth, drawn.baseline) == ("", None)


def test_dpo_curve_shows_where_a_policy_without_preference_stands() -> None:
    drawn = plot(Curve(variant="dpo", name="loss", steps=(1, 2), values=(0.6, 0.4)))
    # log 2 = 0.693 between ticks 0.4 and 0.7
    assert drawn.baseline == pytest.approx(100 * (0.7 - math.log(2)) / 0.3, abs=0.01)


def test_curve_of_one_logged_step_is_drawn() -> None:
    assert plot(Curve(variant="sft", name="loss", steps=(5,), values=(1.0,))).points == "0,100"


def test_long_curve_is_thinned_and_smoothed() -> None:
    steps = tuple(range(1, 2001))
    drawn = plot(Curve(variant="sft", name="loss", steps=steps, values=tuple(1 / step for step in steps)))
    assert len(drawn.points.split()) <= 300
    assert drawn.window == 7 * (len(drawn.points.split()) // 12)
    assert (drawn.curve.steps[0], drawn.curve.steps[-1]) == (1, 2000)


@pytest.fixture(scope="module")
def browser() -> Iterator["Browser"]:
    if not CHROMIUM.is_file():
        pytest.skip(f"{CHROMIUM} is not there: `apt-get install chromium` brings it")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=[*CHROMIUM_FLAGS])
        yield chromium
        chromium.close()


def open_page(browser: "Browser", path: Path, width: int, scheme: str) -> tuple["Page", list[str]]:
    """The page at a width, everything unfolded, and what it complained of or asked for."""
    page = browser.new_page(viewport={"width": width, "height": 844}, color_scheme=scheme)  # type: ignore[arg-type]
    heard: list[str] = []
    page.on("console", lambda message: heard.append(message.text))
    page.on("pageerror", lambda error: heard.append(str(error)))
    page.on("request", lambda request: heard.append(request.url))
    page.goto(path.as_uri())
    page.evaluate("document.querySelectorAll('details').forEach(details => details.open = true)")
    return page, [said for said in heard if said != path.as_uri()]


@pytest.mark.browser
@pytest.mark.parametrize(("width", "scheme"), [(390, "light"), (1280, "dark")])
def test_page_in_a_browser_fits_its_width_and_is_silent(
    browser: "Browser", tmp_path: Path, width: int, scheme: str
) -> None:
    path = tmp_path / "report.html"
    path.write_text(render_html(full_report(tmp_path, {"hep-go": 12, "donotanswer": 6}, HOSTILE + "x" * 300)))
    page, heard = open_page(browser, path, width, scheme)
    assert heard == []
    assert page.evaluate("document.documentElement.scrollWidth") == width
    too_wide = "[...document.querySelectorAll('.scroll')].filter(box => box.scrollWidth > box.clientWidth).length"
    assert page.evaluate(too_wide) == 0
    assert page.title() == "ReasonGenRM report: bench.jsonl"
    dark = page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(21, 22, 26)"
    assert dark == (scheme == "dark")
    page.close()


@pytest.mark.browser
def test_hostile_text_does_not_run_even_without_the_pages_own_policy(browser: "Browser", tmp_path: Path) -> None:
    page_text = render_html(full_report(tmp_path, {"sums": 12}, HOSTILE))
    bare = re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", page_text)
    assert bare != page_text
    path = tmp_path / "bare.html"
    path.write_text(bare)
    page, heard = open_page(browser, path, 1280, "light")
    assert heard == []
    assert page.title() == "ReasonGenRM report: bench.jsonl"
    assert page.locator("script, img").count() == 0
    assert HOSTILE in page.locator(".case .text").first.inner_text()
    page.close()


@pytest.mark.browser
def test_bars_are_as_long_as_the_figures_say(browser: "Browser", tmp_path: Path) -> None:
    report = full_report(tmp_path, {"sums": 12})
    path = tmp_path / "report.html"
    path.write_text(render_html(report))
    page, _ = open_page(browser, path, 1280, "light")
    lengths = page.evaluate(
        "[...document.querySelectorAll('#accuracy > .card .bar')].map(bar => "
        "bar.querySelector('.fill').getBoundingClientRect().width / "
        "bar.querySelector('.track').getBoundingClientRect().width)"
    )
    assert lengths == pytest.approx([evaluation.accuracy for evaluation in report.evaluations], abs=1e-3)
    page.close()


@pytest.mark.browser
def test_page_shows_itself_in_the_frame_that_kfps_ui_gives_it(browser: "Browser", tmp_path: Path) -> None:
    # kubeflow/pipelines, frontend/src/components/viewers/HTMLViewer.tsx at 2.17.0: srcdoc, sandbox="allow-scripts".
    report = render_html(full_report(tmp_path, {"sums": 12}))
    page = browser.new_page(viewport={"width": 1000, "height": 844})
    heard: list[str] = []
    page.on("console", lambda message: heard.append(message.text))
    page.on("request", lambda request: heard.append(request.url))
    page.set_content('<iframe sandbox="allow-scripts" style="width: 100%; height: 600px; border: 0"></iframe>')
    page.eval_on_selector("iframe", "(frame, html) => { frame.srcdoc = html }", report)
    frame = page.frame_locator("iframe")
    frame.locator("#accuracy").wait_for()
    assert frame.locator("h1").first.inner_text()
    box = frame.locator("#accuracy > .card .bar .fill").first.bounding_box()
    assert box
    assert box["width"] > 50
    fold = frame.locator("details").first
    was_open = fold.get_attribute("open")
    fold.locator("summary").first.click()
    assert fold.get_attribute("open") != was_open
    assert [said for said in heard if not said.startswith("about:")] == []
    page.close()
