"""The whole benchmark with the smallest shape: every part and every way, once; and what is left of it."""

import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from xml.etree import ElementTree

import pytest
import torch
from matplotlib.colors import to_hex
from typer.testing import CliRunner

from benchmarks.clock import Budget
from benchmarks.equality import equality
from benchmarks.figures import Machine, Report, read_report
from benchmarks.measure import PARTS, measure
from benchmarks.measurements import machine_of_plan
from benchmarks.parts import Comparison, _run_way
from benchmarks.plot import GREEN, GREY, draw
from benchmarks.setting import Done, Setting
from benchmarks.shapes import SHAPES
from benchmarks.world import World
from reasongenrm.planning.measurements import read_measurements

MICRO = SHAPES["micro"]
MACHINE = Machine(device="x", num_processes=1, peak_tflops=1.0, peak_how="", versions={}, commit=None, load_average=0.0)


def setting(folder: Path) -> Setting:
    return Setting(MICRO, World(0, 1, torch.device("cpu")), Budget(0.0, warmup=0, max_steps=2), folder)


@pytest.fixture(scope="module")
def results(tmp_path_factory) -> Iterator[Path]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # a micro model is no work for two, which wait for each other on a busy machine
    output = tmp_path_factory.mktemp("results")
    of_all = setting(tmp_path_factory.mktemp("scratch"))
    assert measure(PARTS, of_all, of_all, output) == []
    yield output
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def report(results: Path) -> Report:
    return read_report(results / "results.json")


def test_every_way_is_measured_but_liger_without_a_gpu(report: Report) -> None:
    ways = {part.part: {way.name: way.status for way in part.ways} for part in report.parts}
    assert ways == {
        "sft": {"ours": "measured", "trl": "measured", "trl+liger": "skipped"},
        "dpo": {"ours": "measured", "trl": "measured"},
        "scoring": {"ours": "measured", "one at a time": "measured"},
        "equality": {},
    }


def test_all_ways_of_a_part_do_the_same_first_step(report: Report) -> None:
    for part in report.parts[:2]:
        first = [way.measured.steps[0] for way in part.ways if way.measured]
        assert len({(step.tokens, step.examples, step.work) for step in first}) == 1
        assert first[0].examples == (4 if part.part == "sft" else 2)


def test_figures_follow_from_the_steps(report: Report) -> None:
    for part in report.parts:
        for way in part.ways:
            if way.measured is None:
                continue
            tokens, seconds = sum(s.tokens for s in way.measured.steps), sum(s.seconds for s in way.measured.steps)
            flops = 2 if part.part == "scoring" else 6
            expected = flops * part.num_parameters * tokens / seconds / (report.machine.peak_tflops * 1e12)
            assert way.measured.mfu == pytest.approx(expected)
            assert way.measured.peak_memory_gib > 0.01


def test_only_ours_of_dpo_does_something_once_before(report: Report) -> None:
    ours, trl = (way.measured for way in report.parts[1].ways)
    assert ours is not None
    assert trl is not None
    assert (ours.before_examples, trl.before_examples) == (16, 0)
    assert ours.tokens_per_second_with_before < ours.tokens_per_second


def test_packed_and_plain_numbers_hold(report: Report) -> None:
    apart = report.parts[-1].apart
    assert [found.what for found in apart] == [
        "SFT losses of the examples",
        "SFT gradient",
        "SFT gradient, worst tensor",
        "DPO log P of the reasons",
        "DPO gradient",
        "DPO gradient, worst tensor",
        "log P of reasons and verdicts",
    ]
    assert all(found.holds for found in apart)
    assert max(found.ours for found in apart) < 1e-4


def test_bfloat16_numbers_hold_too(tmp_path: Path) -> None:
    """Packed SFT, DPO and scoring under autocast, within the spread of two ways of doing it unpacked."""
    found = equality(replace(setting(tmp_path), asked_dtype="bfloat16"))
    assert len(found) == 7
    assert [one.what for one in found if not one.holds] == []
    assert all(one.ours > 1e-7 for one in found), "these were not computed in bfloat16"


def test_what_was_set_beside_trls_defaults_is_written_down(report: Report) -> None:
    (trl,) = (way for way in report.parts[0].ways if way.name == "trl")
    assert trl.settings == {
        "bf16": False,
        "per_device_train_batch_size": 4,
        "gradient_accumulation_steps": 1,
        "max_length": 64,
        "max_steps": 2,
        "train_sampling_strategy": "sequential",
    }


def test_the_picture_has_a_bar_for_every_measured_way(results: Path, report: Report) -> None:
    axes = draw(report).axes
    colours = [to_hex(bar.get_facecolor()) for each in axes for bar in each.patches]
    measured = sum(way.measured is not None for part in report.parts for way in part.ways)
    assert colours.count(GREEN) == 2 * 3  # tokens/s and MFU of three parts
    assert colours.count(GREEN) + colours.count(GREY) == 2 * measured
    picture = ElementTree.parse(results / "results.svg")
    text = " ".join("".join(each.itertext()) for each in picture.iter("{http://www.w3.org/2000/svg}text"))
    assert f"ours is {report.parts[0].ratios[0].ratio:.2f} x" in text
    assert "skipped: liger's kernels need a GPU" in text


def test_ours_is_written_as_measurements_of_the_plan(results: Path, report: Report) -> None:
    measured = read_measurements(results / "measurements.json").measurements
    assert [one.kind for one in measured] == ["train_sft", "train_dpo", "score_reasons"]
    assert [one.model for one in measured] == [MICRO.model] * 3
    sft, dpo, _ = (part.ways[0].measured for part in report.parts[:3])
    assert measured[0].seconds == pytest.approx(sft.seconds)
    assert measured[1].seconds == pytest.approx(dpo.seconds + dpo.before_seconds * dpo.num_examples / 16)
    assert measured[0].work.num_tokens == sft.num_tokens


def test_the_tables_are_markdown(results: Path) -> None:
    text = (results / "results.md").read_text(encoding="utf-8")
    rows = [line for line in text.splitlines() if line.startswith("| sft, micro")]
    assert len(rows) == 3
    assert {row.count("|") for row in rows} == {10}


def test_a_way_that_fails_is_recorded_and_the_rest_goes_on(tmp_path, capsys) -> None:
    def broken(_: Setting, work: int) -> Done:
        raise torch.OutOfMemoryError(f"tried to allocate\n {work} GiB")

    way = _run_way("trl", Comparison(lambda _: 80, {"trl": broken}, 6), 80, setting(tmp_path), MACHINE)
    assert (way.status, way.message) == ("failed", "OutOfMemoryError: tried to allocate 80 GiB")
    assert "OutOfMemoryError" in capsys.readouterr().err


def test_of_several_processes_a_failure_ends_the_run(tmp_path) -> None:
    def broken(*_: object) -> Done:
        raise RuntimeError("lost")

    several = Setting(MICRO, World(0, 2, torch.device("cpu")), Budget(0.0, 0, 1), tmp_path)
    with pytest.raises(RuntimeError, match="lost"):
        _run_way("trl", Comparison(lambda _: 0, {"trl": broken}, 6), 0, several, MACHINE)


def test_gpus_are_those_that_the_plan_knows() -> None:
    assert machine_of_plan("NVIDIA H100 80GB HBM3", 80) == read_measurements().machine("h100")
    assert machine_of_plan("NVIDIA GeForce RTX 4090", 24).name == "nvidia-geforce-rtx-4090"
    assert machine_of_plan("x86_64, 2 threads", None).name == "cpu"


@pytest.mark.parametrize(
    ("arguments", "found"), [(["sfd"], "no part is called 'sfd'"), (["--shape", "9b"], "called '9b'")]
)
def test_a_wrong_name_is_refused_with_the_names_there_are(arguments: list[str], found: str) -> None:
    import typer

    from benchmarks.measure import main

    app = typer.Typer()
    app.command()(main)
    result = CliRunner(env={"COLUMNS": "400"}).invoke(app, arguments)
    assert result.exit_code == 2
    assert found in result.output


def test_the_other_benchmarks_are_subcommands() -> None:
    root = Path(__file__).parents[2]
    command = [sys.executable, "-m", "benchmarks", "judge-load", "--help"]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=True)
    assert "Measure the judge in front of a stub predictor" in done.stdout


@pytest.mark.skipif(find_spec("vllm") is not None, reason="vLLM is here")
def test_what_is_missing_is_said_in_one_line() -> None:
    command = [sys.executable, "-m", "benchmarks", "generation", "--shape", "tiny"]
    ran = subprocess.run(command, cwd=Path(__file__).parents[2], capture_output=True, text=True, check=False)
    assert ran.returncode == 1
    assert ran.stderr.startswith("error: engine.kind is 'vllm', but vLLM is not installed")
    assert "Traceback" not in ran.stderr
