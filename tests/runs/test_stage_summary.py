"""A stage on one page of Markdown."""

from reasongenrm.runs.stage_summary import stage_summary
from reasongenrm.store.artifacts import Manifest


def manifest(**changes: object) -> Manifest:
    values = {
        "stage": "select_reasons",
        "key": "k",
        "digest": "sha256:d",
        "created_at": "2026-11-24T10:00:00.000+00:00",
        "files": [],
        "config": {"min_score": 0.1, "engine": {"kind": "vllm", "max_model_len": None}},
        "inputs": {"scored": "sha256:s"},
        "input_uris": {},
        "code_version": "0.1.0",
        "source_sha256": "0",
        "counts": {"num_in": 2000, "num_out": 1017, "num_dropped_low_score": 983},
        "metrics": {"mean_score": 0.123456, "histogram": [1, 2]},
        "uri": "s3://bucket/select_reasons/k/sha256-d",
    }
    return Manifest.model_validate({**values, **changes})


def test_summary_tells_what_was_kept_and_dropped_and_why() -> None:
    lines = stage_summary(manifest(), reused=False).splitlines()
    assert lines[0] == "# select_reasons: 2,000 in, 1,017 out"
    assert "| low score | 983 (49.1 %) |" in lines  # 983 of 2,000
    assert "| mean score | 0.1235 |" in lines
    assert "| engine.kind | vllm |" in lines
    assert "| scored | sha256:s |" in lines
    assert "s3://bucket/select_reasons/k/sha256-d" in lines[-1]


def test_summary_leaves_out_what_says_nothing() -> None:
    page = stage_summary(manifest(counts={}, metrics={}, inputs={}), reused=False)
    assert page.startswith("# select_reasons: nothing counted\n")
    for absent in ("max_model_len", "histogram", "dropped because", "| figure", "| input", "Reused"):
        assert absent not in page
    assert "Reused: an earlier run had made it." in stage_summary(manifest(), reused=True)


def test_a_value_cannot_end_its_cell_or_become_markup() -> None:
    page = stage_summary(manifest(config={"teacher": "a|b\n# `<script>"}), reused=False)
    assert "| teacher | a\\|b # '&lt;script> |" in page.splitlines()
