"""The command line: light, documented, with errors that say what to do and exit codes that say what went wrong."""

import csv
import io
import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import typer.main
from typer.testing import CliRunner

from reasongenrm import __version__
from reasongenrm.cli import app
from reasongenrm.cli.settings import absolute, make_config
from reasongenrm.config import RunConfig
from reasongenrm.errors import ConfigError
from reasongenrm.processes.child import is_up
from reasongenrm.store.artifacts import Store
from tests.judges import row, write_rows
from tests.tiny import tiny_checkpoint

GROUP: Any = typer.main.get_command(app)
COMMANDS = sorted(GROUP.commands)


def invoke(*arguments: str) -> Any:
    """Run a command in this process."""
    return CliRunner().invoke(app, [*arguments], env={"COLUMNS": "200", "TERM": "dumb"})


# What draws the help; rich looks for attrs, typer for the user's shell.
_DRAWS_HELP = {"typer", "annotated_doc", "shellingham", "rich", "pygments", "markdown_it", "mdurl", "attr"}
# typer checks the arguments of a command with pydantic.
_CHECKS_ARGUMENTS = {"pydantic", "pydantic_core", "annotated_types", "typing_extensions", "typing_inspection"}
_HEAVY = {
    *("torch", "transformers", "trl", "accelerate", "deepspeed", "datasets", "gguf", "pandas", "numpy", "matplotlib"),
    *("kfp", "kubernetes", "kserve", "boto3", "fastapi", "uvicorn", "aiohttp", "gradio", "httpx", "huggingface_hub"),
}


def packages_after(*calls: list[str]) -> list[set[str]]:
    """Which third-party packages a fresh Python has imported after each of some commands, one after the other."""
    program = f"""
import contextlib, io, json, sys
before = {{*sys.modules}}
from reasongenrm.cli import app
for arguments in {[*calls]}:
    with contextlib.redirect_stdout(io.StringIO()):
        try:
            app(arguments)
        except SystemExit as end:
            assert not end.code, (arguments, end.code)
    roots = {{name.partition(".")[0] for name in {{*sys.modules}} - before}} - {{*sys.stdlib_module_names}}
    print(json.dumps([name for name in roots if not name.startswith("_")]))
"""
    found = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stderr
    return [set(json.loads(line)) - {"reasongenrm"} for line in found.stdout.splitlines()]


def test_help_of_every_command_imports_only_what_draws_it() -> None:
    [overview, *helps] = packages_after(["--help"], *([name, "--help"] for name in COMMANDS))
    assert overview - _DRAWS_HELP == set()
    assert set().union(*helps) - _DRAWS_HELP - _CHECKS_ARGUMENTS == set()


@pytest.mark.parametrize(
    ("arguments", "uses"),
    [
        ("--version", set()),
        ("doctor", set()),
        ("runs --store {folder}", {"boto3"}),
        ("models --store {folder}", {"boto3"}),
        ("compile --output {folder}/pipeline.yaml", {"kfp", "kubernetes"}),
    ],
    ids=["version", "doctor", "runs", "models", "compile"],
)
def test_command_imports_only_the_heavy_packages_that_it_uses(arguments: str, uses: set[str], tmp_path: Path) -> None:
    (tmp_path / "store").mkdir()
    [found] = packages_after(arguments.format(folder=tmp_path).split())
    assert found & _HEAVY == uses


def test_commands_are_those_of_the_documentation() -> None:
    stages = ["prepare", "distill", "sample", "score", "train"]
    cluster = ["submit", "logs", "cancel", "rollback", "compile"]
    others = ["run", "plan", "convert", "evaluate", "compare", "judge", "judge-server", "serve", "web", "doctor"]
    store = ["models", "runs", "publish"]
    assert sorted([*stages, *cluster, *others, *store, "config"]) == COMMANDS


@pytest.mark.parametrize("name", COMMANDS)
def test_help_of_a_command_has_an_example_that_parses(name: str) -> None:
    text = invoke(name, "--help").output
    examples = re.findall(rf"^ +reasongenrm {name}\b(.*)$", text, re.MULTILINE)
    assert examples
    known = {
        option for parameter in GROUP.commands[name].params for option in (*parameter.opts, *parameter.secondary_opts)
    }
    used = {option for example in examples for option in re.findall(r"(?<!\S)(--?[a-z][-a-z]*)", example)}
    assert used <= known


@pytest.mark.parametrize("name", COMMANDS)
def test_every_option_says_what_it_is_for(name: str) -> None:
    silent = [
        parameter.name for parameter in GROUP.commands[name].params if not parameter.help and parameter.name != "help"
    ]
    assert silent == []


def test_version_is_printed() -> None:
    assert invoke("--version").output == f"reasongenrm {__version__}\n"


def test_shell_completion_can_be_installed() -> None:
    result = invoke("--help")
    assert "--install-completion" in result.output


def test_unknown_command_is_a_usage_error() -> None:
    assert invoke("runn").exit_code == 2


def test_error_is_one_message_with_its_own_exit_code_and_no_traceback(tmp_path: Path) -> None:
    config = tmp_path / "run.yaml"
    config.write_text("sft: {learning_rat: 1}")
    result = invoke(*RUN, "--config", str(config), "--store", str(tmp_path))
    assert result.exit_code == 2
    assert result.stderr == f"error: {config}: unknown key 'sft.learning_rat'; did you mean 'learning_rate'?\n"
    assert result.stdout == ""


def test_run_finds_a_bad_row_before_anything_starts(store: Store, tmp_path: Path) -> None:
    preferences, benchmark = tmp_path / "pairs.jsonl", tmp_path / "rows.jsonl"
    preferences.write_text('{"chosen": []}\n', encoding="utf-8")
    write_rows(benchmark, [row("own", 1)])
    given = ["--preferences", str(preferences), "--benchmark", str(benchmark), "--model", str(tmp_path)]
    result = invoke("run", *given, "--store", store.uri, "--set", "deploy.apply=false")
    assert result.exit_code == 2
    said = result.output.replace("\n", " ")
    assert "pairs.jsonl line 1: columns chosen; no format of preferences has these" in said
    assert store.list() == []


def test_run_without_a_cluster_to_deploy_to_says_so_before_anything_starts(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "none"))
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    result = invoke(*RUN, "--store", store.uri)
    assert result.exit_code == 2
    assert re.search(r"deploy\.apply is true.*kubeconfig.*--set deploy\.apply=false", result.output.replace("\n", " "))
    assert store.list() == []


def test_debug_shows_the_traceback(tmp_path: Path) -> None:
    result = invoke("--debug", *RUN, "--config", str(tmp_path / "none.yaml"), "--store", str(tmp_path))
    assert isinstance(result.exception, ConfigError)


RUN = ("run", "--preferences", "p.jsonl", "--benchmark", "b.jsonl", "--model", "m")


def test_ctrl_c_is_no_error_and_has_the_exit_code_of_a_signal(monkeypatch: pytest.MonkeyPatch) -> None:
    from reasongenrm.cli import doctor

    def interrupted(_store: str | None) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(doctor, "examine", interrupted)
    result = invoke("doctor")
    assert result.exit_code == 130
    assert result.stderr == "stopped; what is finished is kept, start again to go on\n"


@pytest.mark.parametrize(("no_color", "coloured"), [("1", False), ("", True)])
def test_no_color_is_respected(no_color: str, coloured: bool, tmp_path: Path) -> None:
    env = {**os.environ, "FORCE_COLOR": "1", "TERM": "xterm-256color", "COLUMNS": "300"} | (
        {"NO_COLOR": "1"} if no_color else {}
    )
    command = [sys.executable, "-m", "reasongenrm", *RUN, "--config", str(tmp_path / "none.yaml")]
    found = subprocess.run(command, capture_output=True, text=True, env=env, check=False)
    assert found.returncode == 2
    assert "no such config file" in found.stderr
    assert ("\x1b[31m" in found.stderr) == coloured


# Configuration from the command line.


def test_assignments_change_one_value_each_and_the_last_one_wins() -> None:
    config = make_config(None, ["sft.learning_rate=1e-4", "sft.learning_rate=2e-4", "distill.engine.kind=transformers"])
    assert config.sft.learning_rate == 2e-4
    assert config.distill.engine.kind == "transformers"
    changed = config.model_copy(update={"sft": RunConfig().sft, "distill": RunConfig().distill})
    assert changed == RunConfig()


def test_assignments_take_lists_and_go_over_the_file(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text("gate: {candidates: [sft], min_accuracy_low: 0.2}")
    config = make_config(path, ["gate.candidates=[genrm, dpo]"])
    assert (config.gate.candidates, config.gate.min_accuracy_low) == (("genrm", "dpo"), 0.2)


def test_limit_is_of_pairs_and_of_benchmark_rows() -> None:
    config = make_config(None, [], limit=48)
    assert (config.pairs.limit, config.evaluate.limit, config.sample.limit) == (48, 48, None)


def test_shipped_configs_are_found_by_name_and_a_file_goes_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert make_config(Path("smoke"), []).pairs.limit == 4
    assert make_config(Path("reference/qwen2.5-7b"), []).inputs.model == "Qwen/Qwen2.5-7B-Instruct"
    (tmp_path / "smoke").write_text("pairs: {limit: 5}")
    assert make_config(Path("smoke"), []).pairs.limit == 5
    with pytest.raises(ConfigError, match=r"--config smal: no such file, .* one of demo, reference/.*, small, smoke\."):
        make_config(Path("smal"), [])


@pytest.mark.parametrize(
    ("assignment", "message"),
    [
        (
            "sft.learning_rat=1",
            r"--set sft\.learning_rat=1: unknown key 'sft\.learning_rat'; did you mean 'learning_rate'\?",
        ),
        ("stf.learning_rate=1", r"unknown key 'stf'; did you mean 'sft'\?"),
        ("sft.learning_rate=fast", r"'sft\.learning_rate' is 'fast'"),
        ("sft.learning_rate", r"expected SECTION\.KEY=VALUE"),
        ("sft=1", r"expected SECTION\.KEY=VALUE"),
        ("sft.seed.deep=1", r"'seed' is a single value and has no keys of its own"),
        ("gate.candidates=[", r"the value is not valid YAML"),
    ],
)
def test_assignment_that_does_not_fit_is_named(assignment: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make_config(None, [assignment])


def test_local_paths_are_made_absolute_and_names_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "pairs.jsonl").touch()
    assert absolute("pairs.jsonl") == str(tmp_path / "pairs.jsonl")
    for uri in ("s3://bucket/pairs.jsonl", "http://127.0.0.1/v1", "allenai/reward-bench"):
        assert absolute(uri) == uri


def test_stage_command_runs_the_stage_and_prints_its_artifact(store: Store, tmp_path: Path) -> None:
    result = invoke("prepare", "--preferences", "p.jsonl", "--model", str(tmp_path / "none"), "--store", store.uri)
    assert result.exit_code == 2
    assert f"{tmp_path / 'none'}: no such folder" in result.stderr


def test_prepare_takes_columns_by_their_own_names_and_says_what_it_read(
    store: Store, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "pairs.csv"
    path.write_text("question,good,bad\nName a prime.,7,9\n")
    model = tiny_checkpoint(tmp_path / "model", "chatml")
    given = ("--preferences", str(path), "--model", str(model), "--store", store.uri, "--json")
    result = invoke("prepare", *given, "--columns", "prompt=question,chosen=good,rejected=bad")
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["prompts"]["counts"] == {"num_in": 1, "num_out": 1}
    said = result.stderr + capfd.readouterr().err
    assert f"prepare_pairs: {path}: 1 rows, read as TRL's explicit prompt" in said


# Judging, behind an endpoint that always finds the marked answer.


class _Endpoint(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self._send({"object": "list", "data": [{"id": "marker-finder"}]})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        text = body["messages"][-1]["content"]
        verdict = "[[A]]" if text.index("MARK") < text.index("### Answer B") else "[[B]]"
        message = {"role": "assistant", "reasoning": "One answer is marked.", "content": verdict}
        usage = {"prompt_tokens": 7, "completion_tokens": 5, "total_tokens": 12}
        choice = {"index": 0, "message": message, "finish_reason": "stop"}
        self._send(
            {"id": "1", "object": "chat.completion", "created": 0, "model": "m", "choices": [choice], "usage": usage}
        )

    def _send(self, value: Any) -> None:
        data = json.dumps(value).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format: str, *args: Any) -> None:
        pass


@pytest.fixture(scope="module")
def endpoint() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), _Endpoint) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}/v1"
        server.shutdown()
        thread.join()


def test_a_server_here_is_asked_whether_it_is_up_without_proxy_or_certificates(
    endpoint: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")  # where nobody is
    monkeypatch.setenv("SSL_CERT_FILE", "/nowhere")
    assert is_up(f"{endpoint}/models")
    assert not is_up("http://127.0.0.1:9/health")


PAIR = ("--question", "Which?", "--answer-a", "plain [bold]text[/bold]", "--answer-b", "MARK text")


def test_judge_shows_both_orders_and_what_they_agree_on(endpoint: str) -> None:
    result = invoke("judge", "--endpoint", endpoint, *PAIR)
    assert result.exit_code == 0
    for part in (
        f"marker-finder at {endpoint}",
        "Answer A: plain [bold]text[/bold]",  # an answer is text, never markup
        "Reason (as given): One answer is marked.",
        "Reason (answers swapped: its A is your B): One answer is marked.",
        "Verdict: answer B as given",
        "Answer B, in both orders.",
    ):
        assert part in result.stdout


def test_judge_prints_json_and_nothing_else(endpoint: str) -> None:
    found = json.loads(invoke("judge", "--endpoint", endpoint, *PAIR, "--votes", "2", "--json").stdout)
    assert (found["preferred"], found["consistent"], found["usage"]["num_requests"]) == ("B", True, 4)


@pytest.mark.parametrize("judge", [[], ["--model", "m", "--endpoint", "http://127.0.0.1:9/v1"]])
def test_evaluated_is_one_of_a_model_and_an_endpoint(judge: list[str]) -> None:
    result = invoke("evaluate", *judge, "--benchmark", "b.jsonl")
    assert result.exit_code == 2
    assert "give the judge as one of --model URI and --endpoint URL" in result.stderr


def test_evaluate_prints_a_table_and_leaves_report_and_figures(endpoint: str, tmp_path: Path) -> None:
    rows = [row(subset, n, chosen=f"MARK {n}") for subset in ("mine", "yours") for n in range(3)]
    benchmark = write_rows(tmp_path / "rows.jsonl", rows)
    output = tmp_path / "out"
    arguments = ("evaluate", "--endpoint", endpoint, "--benchmark", benchmark, "-o", str(output), "--name", "finder")
    result = invoke(*arguments)
    assert result.exit_code == 0, result.output
    # 6 rows, all right: Wilson's 6 / (6 + 1.96^2) to 1.
    assert re.search(r"finder +100\.0 +61\.0-100\.0 +100\.0 +0\.0 +5 ", result.stdout)
    assert f"report: {output / 'report.html'}" in result.stderr
    assert "finder" in (output / "report.html").read_text()
    assert json.loads((output / "evaluation.json").read_text())["accuracy"] == 1.0
    assert json.loads((output / "report.json").read_text())["evaluations"][0]["variant"] == "finder"
    again = invoke(*arguments, "--limit", "2", "--format", "json")
    assert json.loads(again.stdout)["benchmark"]["num_rows"] == 2
    assert invoke(*arguments, "--format", "md").stdout.startswith("| judge | accuracy | 95% interval | consistent |")
    [figures] = csv.DictReader(io.StringIO(invoke(*arguments, "--format", "csv").stdout))
    assert (figures["variant"], figures["accuracy"]) == ("finder", "1.0")
    assert float(figures["accuracy_low"]) == pytest.approx(6 / (6 + 1.959964**2), abs=1e-6)


def test_a_password_in_an_endpoints_address_is_in_no_report_and_no_output(endpoint: str, tmp_path: Path) -> None:
    address = endpoint.replace("http://", "http://me:canary@")
    benchmark = write_rows(tmp_path / "rows.jsonl", [row("mine", n, chosen=f"MARK {n}") for n in range(2)])
    output = tmp_path / "out"
    results = [
        invoke("evaluate", "--endpoint", address, "--benchmark", benchmark, "-o", str(output)),
        invoke("judge", "--endpoint", address, *PAIR),
    ]
    for result in results:
        assert result.exit_code == 0, result.output
        assert "canary" not in result.output + result.stderr
    written = {path: path.read_bytes() for path in output.rglob("*") if path.is_file()}
    assert any(endpoint.encode() in data for data in written.values()), "the address itself is there"
    assert not [path for path, data in written.items() if b"canary" in data]
    gone = invoke("judge", "--endpoint", "http://me:canary@127.0.0.1:9/v1", *PAIR)
    assert (gone.exit_code, "canary" in gone.output + gone.stderr) == (4, False)


@pytest.mark.parametrize("command", ["judge", "evaluate"])
def test_an_endpoint_without_its_scheme_is_an_error_that_says_so(command: str, tmp_path: Path) -> None:
    benchmark = write_rows(tmp_path / "rows.jsonl", [row("mine", 0)])
    more = PAIR if command == "judge" else ("--benchmark", benchmark, "-o", str(tmp_path / "out"))
    result = invoke(command, "--endpoint", "127.0.0.1:8000/v1", *more)
    assert result.exit_code == 2
    assert "does not begin with http:// or https://" in " ".join(result.stderr.split())


def test_a_judge_server_says_what_is_wrong_with_its_predictors_address_before_it_serves() -> None:
    result = invoke("judge-server", "--predictor", "http://me:canary@127.0.0.1:port/v1")
    assert result.exit_code == 2
    assert "its port is no number from 1 to 65535" in " ".join(result.stderr.split())
    assert "canary" not in result.output + result.stderr


def test_endpoint_that_is_not_there_is_an_engine_error() -> None:
    result = invoke("judge", "--endpoint", "http://127.0.0.1:9/v1", *PAIR)
    assert result.exit_code == 4
    assert "http://127.0.0.1:9/v1" in result.stderr


# Tools.


def test_doctor_prints_json_for_programs() -> None:
    found = {finding["name"]: finding for finding in json.loads(invoke("doctor", "--json").stdout)}
    assert found["Python"]["ok"]
    assert found["extra 'vllm'"]["needed"] is False


def test_doctor_fails_for_what_is_needed_only(monkeypatch: pytest.MonkeyPatch) -> None:
    from reasongenrm.cli import doctor
    from reasongenrm.cli.findings import Finding

    fine = Finding("disk", True, "lots", "", needed=True)
    optional = Finding("GPU", False, "none", "buy one", needed=False)
    needed = Finding("memory", False, "little", "get more", needed=True)
    monkeypatch.setattr(doctor, "examine", lambda _store: [fine, optional])
    assert invoke("doctor").exit_code == 0
    monkeypatch.setattr(doctor, "examine", lambda _store: [fine, optional, needed])
    result = invoke("doctor")
    assert result.exit_code == 1
    assert [line.split()[:2] for line in result.stdout.splitlines()[1:]] == [
        ["ok", "disk"],
        ["--", "GPU"],
        ["!!", "memory"],
    ]


def test_compile_check_notices_a_stale_file(tmp_path: Path) -> None:
    stale = tmp_path / "pipeline.yaml"
    stale.write_text("old")
    result = invoke("compile", "--check", "-o", str(stale))
    assert result.exit_code == 2
    assert "not what the pipeline compiles to. Run `reasongenrm compile`" in result.stderr
    assert stale.read_text() == "old"
