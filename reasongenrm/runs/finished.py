"""What a finished run made, copied out of the store: its report and decision as files, its winner as a folder."""

import shutil
from pathlib import Path

from reasongenrm.data.benchmarks import BenchmarkRow
from reasongenrm.deploy.manifest import FILE_NAME
from reasongenrm.evaluation.calibration import save_calibration
from reasongenrm.evaluation.metrics import Evaluation
from reasongenrm.records import parse_records
from reasongenrm.store.artifacts import download, open_artifact, read_file
from reasongenrm.store.run_records import RunRecord
from reasongenrm.variants import VARIANTS

REPORT_FILES = ("report.html", "report.json", "decision.md", "decision.json")


class FinishedRun:
    """A run's results.

    Args:
        record: of a run that has decided; its store is open.
        folder: gets report, decision and InferenceService; those of an earlier run go.

    Attributes:
        decision: the gate's artifact.
        winner: variant.
        evaluations: of all variants, in their order.
        first_row: of the benchmark.
        service_path: the InferenceService's file; None if the gate did not pass.
    """

    def __init__(self, record: RunRecord, folder: Path) -> None:
        assert record.decision, "select_winner is part of every run"
        self.folder, self.decision = folder, record.decision
        self.winner = str(self.decision.metrics["winner"])
        self._refs = record.evaluations()
        folder.mkdir(parents=True, exist_ok=True)
        for name in REPORT_FILES:
            (folder / name).write_bytes(read_file(self.decision, name))
        service, path = record.output("deploy_kserve"), folder / FILE_NAME
        path.unlink(missing_ok=True)
        if service:
            path.write_bytes(read_file(service, FILE_NAME))
        self.service_path = path if service else None
        rows = read_file(self._refs[self.winner], "rows.jsonl")
        self.first_row = parse_records(rows, BenchmarkRow, "rows.jsonl")[0]
        self.evaluations = [self._evaluation(variant) for variant in VARIANTS if variant in self._refs]

    def _evaluation(self, variant: str) -> Evaluation:
        return Evaluation.model_validate_json(read_file(self._refs[variant], "evaluation.json"))

    def fetch_winner(self, folder: Path) -> None:
        """Copy the winner's checkpoint to a local folder, over that of an earlier run, with its calibration."""
        model_uri = open_artifact(self._refs[self.winner]).input_uris["model"]
        shutil.rmtree(folder, ignore_errors=True)
        download(model_uri, folder)
        calibration = self._evaluation(self.winner).calibration
        if calibration is not None:
            save_calibration(calibration, folder)  # the service reads it there; the store's checkpoint never changes
