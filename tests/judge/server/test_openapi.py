"""schemathesis over the judge's whole description, against a running server: nothing that it answers is
undocumented."""

import subprocess
import sys
from contextlib import AbstractContextManager
from pathlib import Path

from reasongenrm.judge.judge_app import ServerSettings, create_app
from reasongenrm.judge.server.limits import Limits
from reasongenrm.judge.service import JudgeSettings
from tests.endpoints import serving
from tests.predictors import RulePredictor
from tests.waiting import HANG_SECONDS

NUM_EXAMPLES = 12  # of each operation


# Cannot be said in JSON Schema: that three tensors have one length and a name each; what the predictor wants of a chat;
# that a rollout begins with its prompt.
CONFIG = """
[[operations]]
include-path = "/v1/chat/completions"
checks.positive_data_acceptance.expected-statuses = ["2xx", "400"]

[[operations]]
include-path = "/openrlhf/get_reward"
checks.positive_data_acceptance.expected-statuses = ["2xx", "422"]

[[operations]]
include-path = "/v2/models/{model_name}/infer"
checks.positive_data_acceptance.expected-statuses = ["2xx", "400", "404"]
"""


def _serving_judge(predictor: str) -> AbstractContextManager[str]:
    return serving(create_app(JudgeSettings(predictor), Limits(api_key="sesame"), ServerSettings()))


def test_schemathesis_finds_nothing(tmp_path: Path) -> None:
    predictor = RulePredictor()
    (tmp_path / "schemathesis.toml").write_text(CONFIG)
    with serving(predictor.app) as address, _serving_judge(f"{address}/v1") as judge:
        command = [str(Path(sys.executable).with_name("schemathesis")), "run", f"{judge}/openapi.json"]
        command += ["--max-examples", str(NUM_EXAMPLES), "--seed", "1", "--no-color", "--checks", "all"]
        command += ["--header", "Authorization: Bearer sesame", "--request-timeout", str(HANG_SECONDS)]
        found = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=HANG_SECONDS, check=False)
    assert found.returncode == 0, found.stdout[-6000:] + found.stderr[-2000:]
    assert predictor.bodies, "no request reached the predictor"
