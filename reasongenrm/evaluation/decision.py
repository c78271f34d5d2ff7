"""The gate's decision: which candidate is best, and whether it is good enough to serve.

In go the evaluations of the variants, out comes a `Decision` that says for every candidate, threshold by threshold and
in words, what speaks for and against it. Pure; `gate.py` is the stage around it.
"""

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Literal

from pydantic import Field

from reasongenrm.config import GateConfig
from reasongenrm.errors import ConfigError, InputError
from reasongenrm.evaluation.bootstrap import Interval
from reasongenrm.evaluation.metrics import Difference, Evaluation
from reasongenrm.records import Record
from reasongenrm.variants import BASE, VARIANTS, variant_label


class Check(Record):
    """One threshold held against one candidate."""

    name: Literal["accuracy", "consistency", "unparsed", "beats_base", "beats_champion"]
    passed: bool
    text: str


class Champion(Record):
    """The judge that is served while the gate decides, as far as its own deployment wrote it down.

    Attributes:
        service: NAMESPACE/NAME of its InferenceService.
        model_digest: of its checkpoint.
        evaluation: on the benchmark of that time; None if it was deployed without one.
        differences: by candidate, accuracy minus the champion's, paired by row; empty where the rows are not the same.
    """

    service: str
    variant: str
    model_digest: str
    served_since: str
    evaluation: Evaluation | None
    differences: Mapping[str, Difference] = Field(default_factory=dict)


class GateCandidate(Record):
    """One candidate with everything for and against it. `difference` is to the base model, on the same rows."""

    variant: str
    accuracy: float
    interval: Interval
    difference: Difference | None
    passed: bool
    checks: tuple[Check, ...]


class Decision(Record):
    """The gate's decision.

    Attributes:
        winner: the best candidate. Those that pass every check come first, then the higher accuracy, the higher consistent
            fraction, the fewer tokens per judgment, and the place in the config's list decide.
        passed: whether the winner passed every check, and so may be served.
        candidates: best first.
        champion: the judge that was served when this was decided, None if there was none.
        remarks: what a reader should know in addition to the checks.
    """

    schema_version: Literal[1] = 1
    winner: str
    passed: bool
    summary: str
    candidates: tuple[GateCandidate, ...]
    champion: Champion | None = None
    remarks: tuple[str, ...]
    thresholds: GateConfig


def decide(
    config: GateConfig,
    evaluations: Mapping[str, Evaluation],
    differences: Mapping[str, Difference],
    champion: Champion | None = None,
    model_digests: Mapping[str, str] = {},
) -> Decision:
    """Choose the best candidate and say whether it is good enough.

    Args:
        config: candidates and thresholds.
        evaluations: by variant; the candidates, and the base model if it must be beaten.
        differences: by variant, accuracy minus the base model's on the same rows; may lack variants.
        champion: the judge that is served now; None: nothing is served yet, and any candidate may be the first.
        model_digests: by variant, of the checkpoints; tells a candidate that is the champion itself.

    Raises:
        ConfigError: a candidate or the base model was not evaluated.
        InputError: the evaluations are of different benchmarks.
    """
    _check_evaluated(config, evaluations)
    check_same_rows(evaluations)
    judged = [
        _judge_candidate(
            variant,
            config,
            evaluations,
            differences.get(variant),
            _against_champion(variant, config, evaluations, champion, model_digests),
        )
        for variant in config.candidates
    ]
    # A stable sort: among equals the config's order stays.
    ranked = sorted(judged, key=lambda candidate: _rank(candidate, evaluations[candidate.variant]))
    winner = ranked[0]
    return Decision(
        winner=winner.variant,
        passed=winner.passed,
        summary=_summary(winner, ranked),
        candidates=tuple(ranked),
        champion=champion,
        remarks=_remarks(winner, ranked, evaluations),
        thresholds=config,
    )


def check_same_rows(evaluations: Mapping[str, Evaluation]) -> None:
    """Refuse evaluations that cannot be compared.

    Raises:
        InputError: two were judged on different rows.
    """
    for (first, ours), (second, theirs) in pairwise(evaluations.items()):
        if ours.benchmark.rows_digest != theirs.benchmark.rows_digest:
            raise InputError(
                f"gate: {first} was judged on {ours.benchmark.num_rows} rows of {ours.benchmark.uri} and {second} on "
                f"{theirs.benchmark.num_rows} rows of {theirs.benchmark.uri}; expected the same rows. "
                "Evaluate both on the same benchmark, limit and seed."
            )


def decision_markdown(decision: Decision) -> str:
    """The decision as a page of Markdown."""
    lines = ["# Decision of the gate", "", f"**{decision.summary}**", ""]
    for candidate in decision.candidates:
        verdict = "passed" if candidate.passed else "not passed"
        lines += [f"## {variant_label(candidate.variant)}: {_percent(candidate.accuracy)}, {verdict}", ""]
        lines += [f"- {'for' if check.passed else '**against**'}: {check.text}" for check in candidate.checks]
        lines.append("")
    if decision.champion:
        lines += ["## Served now", "", _champion_line(decision.champion), ""]
    if decision.remarks:
        lines += ["## Remarks", "", *(f"- {remark}" for remark in decision.remarks), ""]
    return "\n".join(lines)


def _check_evaluated(config: GateConfig, evaluations: Mapping[str, Evaluation]) -> None:
    if not config.candidates:
        raise ConfigError(f"gate: 'candidates' is empty; expected at least one of {', '.join(VARIANTS)}.")
    needed = [*config.candidates, *([BASE] if config.beat_base else [])]
    missing = [variant for variant in dict.fromkeys(needed) if variant not in evaluations]
    if missing:
        found = ", ".join(evaluations) or "none"
        raise ConfigError(
            f"gate: no evaluation of {', '.join(missing)} (found: {found}). Evaluate it, or take it out of gate.candidates"
            f"{' and set gate.beat_base to false' if BASE in missing else ''}."
        )


def _judge_candidate(
    variant: str,
    config: GateConfig,
    evaluations: Mapping[str, Evaluation],
    difference: Difference | None,
    against_champion: Check | None,
) -> GateCandidate:
    evaluation = evaluations[variant]
    checks = [
        Check(
            name="accuracy",
            passed=evaluation.interval.low >= config.min_accuracy_low,
            text=f"accuracy {_percent(evaluation.accuracy)}, and the lower end of its {_confidence(evaluation)} interval is "
            f"{_percent(evaluation.interval.low)} (at least {_percent(config.min_accuracy_low)} asked for)",
        ),
        Check(
            name="consistency",
            passed=evaluation.consistent_fraction >= config.min_consistent_fraction,
            text=f"the two orders name the same answer in {_percent(evaluation.consistent_fraction)} of the rows (at least "
            f"{_percent(config.min_consistent_fraction)} asked for)",
        ),
        Check(
            name="unparsed",
            passed=evaluation.unparsed_fraction <= config.max_unparsed_fraction,
            text=f"no verdict in {_percent(evaluation.unparsed_fraction)} of the judgments (at most "
            f"{_percent(config.max_unparsed_fraction)} allowed)",
        ),
    ]
    if config.beat_base and variant != BASE:
        base = evaluations[BASE]
        paired = f" ({_difference(difference, base)})" if difference else ""
        beats = evaluation.accuracy > base.accuracy
        checks.append(
            Check(
                name="beats_base",
                passed=beats,
                text=f"{_percent(evaluation.accuracy)} is {'above' if beats else 'not above'} the base model's "
                f"{_percent(base.accuracy)}{paired}",
            )
        )
    if against_champion:
        checks.append(against_champion)
    return GateCandidate(
        variant=variant,
        accuracy=evaluation.accuracy,
        interval=evaluation.interval,
        difference=None if variant == BASE else difference,
        passed=all(check.passed for check in checks),
        checks=tuple(checks),
    )


def _against_champion(
    variant: str,
    config: GateConfig,
    evaluations: Mapping[str, Evaluation],
    champion: Champion | None,
    model_digests: Mapping[str, str],
) -> Check | None:
    """Hold a candidate against the judge that is served now; one that cannot be compared does not replace it."""
    if champion is None or not config.beat_champion:
        return None
    ours, served = evaluations[variant], f"the judge served now ({champion.service}, {variant_label(champion.variant)})"
    theirs = champion.evaluation
    if model_digests.get(variant) == champion.model_digest:
        return Check(name="beats_champion", passed=True, text=f"it is {served} itself")
    if theirs is None:
        why = f"{served} has no evaluation on record, so nothing says that this one is better"
    elif theirs.benchmark.rows_digest != ours.benchmark.rows_digest:
        why = (
            f"{served} was judged on {theirs.benchmark.num_rows} rows of {theirs.benchmark.uri}, this one on "
            f"{ours.benchmark.num_rows} rows of {ours.benchmark.uri}: they cannot be compared"
        )
    else:
        beats = ours.accuracy > theirs.accuracy
        difference = champion.differences.get(variant)
        paired = f" ({_difference(difference, ours)})" if difference else ""
        text = f"{_percent(ours.accuracy)} is {'above' if beats else 'not above'} the {_percent(theirs.accuracy)} of {served}{paired}"
        return Check(name="beats_champion", passed=beats, text=text)
    return Check(
        name="beats_champion",
        passed=False,
        text=f"{why}; run the benchmark of its deployment, or set gate.beat_champion to false to replace it all the same",
    )


def _rank(candidate: GateCandidate, evaluation: Evaluation) -> tuple[bool, float, float, float]:
    return (not candidate.passed, -evaluation.accuracy, -evaluation.consistent_fraction, evaluation.mean_output_tokens)


def _summary(winner: GateCandidate, ranked: Sequence[GateCandidate]) -> str:
    name = variant_label(winner.variant)
    if winner.passed:
        only = "the only candidate" if len(ranked) == 1 else f"the best of {len(ranked)} candidates"
        return f"{name} wins with {_percent(winner.accuracy)} and passes the gate as {only}."
    failed = sum(not check.passed for check in winner.checks)
    return (
        f"No candidate passes the gate. The best is {name} with {_percent(winner.accuracy)}; "
        f"{failed} of its {len(winner.checks)} checks {'speaks' if failed == 1 else 'speak'} against it."
    )


def _remarks(
    winner: GateCandidate, ranked: Sequence[GateCandidate], evaluations: Mapping[str, Evaluation]
) -> tuple[str, ...]:
    remarks = [
        f"{variant_label(other.variant)} scores higher ({_percent(other.accuracy)}) but does not pass: "
        + "; ".join(check.text for check in other.checks if not check.passed)
        + "."
        for other in ranked
        if other.accuracy > winner.accuracy
    ]
    candidates = {candidate.variant for candidate in ranked}
    remarks += [
        f"{variant_label(variant)} scores higher ({_percent(evaluation.accuracy)}) but is not a candidate."
        for variant, evaluation in evaluations.items()
        if variant not in candidates and evaluation.accuracy > winner.accuracy
    ]
    if winner.difference and not winner.difference.is_clear:
        remarks.append(
            f"The difference between {variant_label(winner.variant)} and the base model is not clear: its interval holds 0."
        )
    return (*remarks, *evaluations[winner.variant].notes)


def _champion_line(champion: Champion) -> str:
    evaluation = champion.evaluation
    figures = (
        f"{_percent(evaluation.accuracy)} on {evaluation.benchmark.num_rows} rows of {evaluation.benchmark.uri}"
        if evaluation
        else "without an evaluation on record"
    )
    return (
        f"{champion.service}: {variant_label(champion.variant)} ({champion.model_digest[:19]}), since "
        f"{champion.served_since}, {figures}."
    )


def _difference(difference: Difference, evaluation: Evaluation) -> str:
    low, high = difference.interval.low, difference.interval.high
    return (
        f"{100 * difference.accuracy:+.1f} points, {_confidence(evaluation)} interval {100 * low:+.1f} to {100 * high:+.1f}, "
        "paired by row"
    )


def _percent(value: float) -> str:
    return f"{100 * value:.1f} %"


def _confidence(evaluation: Evaluation) -> str:
    return f"{100 * evaluation.confidence:g} %"
