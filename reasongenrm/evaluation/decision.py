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
from reasongenrm.evaluation.intervals import Interval
from reasongenrm.evaluation.metrics import Difference, Evaluation
from reasongenrm.records import Record
from reasongenrm.variants import BASE, VARIANTS, variant_label


class Check(Record):
    """One threshold held against one candidate."""

    name: Literal["accuracy", "consistency", "unparsed", "beats_base", "beats_champion"]
    passed: bool
    text: str


class Champion(Record):
    """The judge that is served while the gate decides, as far as its own deployment wrote it down."""

    service: str  # NAMESPACE/NAME of its InferenceService
    variant: str
    model_digest: str  # of its checkpoint
    served_since: str
    evaluation: Evaluation | None  # on the benchmark of that time; None if it was deployed without one
    # By candidate, accuracy minus the champion's, paired by row; empty where the rows are not the same.
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
    """The gate's decision."""

    schema_version: Literal[1] = 1
    # The best candidate. Those that pass every check come first, then the higher accuracy, the higher consistent
    # fraction, the fewer tokens per judgment, and the place in the config's list decide.
    winner: str
    passed: bool  # whether the winner passed every check, and so may be served
    summary: str
    candidates: tuple[GateCandidate, ...]  # best first
    champion: Champion | None = None  # the judge that was served when this was decided, None if there was none
    remarks: tuple[str, ...]  # what a reader should know in addition to the checks
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
    judged = []
    for variant in config.candidates:
        difference = None if variant == BASE else differences.get(variant)
        checks = _checks(variant, config, evaluations, difference)
        if champion and config.beat_champion:
            is_itself = model_digests.get(variant) == champion.model_digest
            checks.append(_against_champion(variant, evaluations[variant], champion, is_itself))
        judged.append(
            GateCandidate(
                variant=variant,
                accuracy=evaluations[variant].accuracy,
                interval=evaluations[variant].interval,
                difference=difference,
                passed=all(check.passed for check in checks),
                checks=tuple(checks),
            )
        )
    # A stable sort: among equals the config's order stays.
    ranked = sorted(judged, key=lambda candidate: (not candidate.passed, *_rank(evaluations[candidate.variant])))
    winner = ranked[0]
    return Decision(
        winner=winner.variant,
        passed=winner.passed,
        summary=_summary(winner, len(ranked)),
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
                f"gate: {first} was judged on {_rows(ours)} and {second} on {_rows(theirs)}; expected the same rows. "
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
            f"gate: no evaluation of {', '.join(missing)} (found: {found}). Evaluate it, or take it out of "
            f"gate.candidates{' and set gate.beat_base to false' if BASE in missing else ''}."
        )


def _checks(
    variant: str, config: GateConfig, evaluations: Mapping[str, Evaluation], difference: Difference | None
) -> list[Check]:
    """The thresholds, and the base model where it must be beaten."""
    found = evaluations[variant]
    checks = [
        Check(
            name="accuracy",
            passed=found.interval.low >= config.min_accuracy_low,
            text=f"accuracy {_percent(found.accuracy)}, and the lower end of its {_confidence(found)} interval is "
            f"{_percent(found.interval.low)} (at least {_percent(config.min_accuracy_low)} asked for)",
        ),
        Check(
            name="consistency",
            passed=found.consistent_fraction >= config.min_consistent_fraction,
            text=f"the two orders name the same answer in {_percent(found.consistent_fraction)} of the rows (at least "
            f"{_percent(config.min_consistent_fraction)} asked for)",
        ),
        Check(
            name="unparsed",
            passed=found.unparsed_fraction <= config.max_unparsed_fraction,
            text=f"no verdict in {_percent(found.unparsed_fraction)} of the judgments (at most "
            f"{_percent(config.max_unparsed_fraction)} allowed)",
        ),
    ]
    if config.beat_base and variant != BASE:
        base = f"the base model's {_percent(evaluations[BASE].accuracy)}"
        checks.append(_beats("beats_base", found, evaluations[BASE], base, difference))
    return checks


def _against_champion(variant: str, ours: Evaluation, champion: Champion, is_itself: bool) -> Check:
    """Hold a candidate against the judge that is served now; one that cannot be compared does not replace it."""
    served = f"the judge served now ({champion.service}, {variant_label(champion.variant)})"
    theirs = champion.evaluation
    if is_itself:
        return Check(name="beats_champion", passed=True, text=f"it is {served} itself")
    if theirs and theirs.benchmark.rows_digest == ours.benchmark.rows_digest:
        accuracy = f"the {_percent(theirs.accuracy)} of {served}"
        return _beats("beats_champion", ours, theirs, accuracy, champion.differences.get(variant))
    why = (
        f"{served} was judged on {_rows(theirs)}, this one on {_rows(ours)}: they cannot be compared"
        if theirs
        else f"{served} has no evaluation on record, so nothing says that this one is better"
    )
    way_out = "run the benchmark of its deployment, or set gate.beat_champion to false to replace it all the same"
    return Check(name="beats_champion", passed=False, text=f"{why}; {way_out}")


def _beats(
    name: Literal["beats_base", "beats_champion"],
    ours: Evaluation,
    theirs: Evaluation,
    accuracy: str,
    difference: Difference | None,
) -> Check:
    """Whether our accuracy is above theirs, which the text calls `accuracy`."""
    beats = ours.accuracy > theirs.accuracy
    text = f"{_percent(ours.accuracy)} is {'above' if beats else 'not above'} {accuracy}"
    if difference:
        points, low, high = (
            f"{100 * value:+.1f}" for value in (difference.accuracy, difference.interval.low, difference.interval.high)
        )
        text += f" ({points} points, {_confidence(theirs)} interval {low} to {high}, paired by row)"
    if theirs.unparsed_fraction:
        unread = _percent(theirs.unparsed_fraction)
        text += f"; that one gave no verdict in {unread} of its judgments, which count one half"
    return Check(name=name, passed=beats, text=text)


def _rank(found: Evaluation) -> tuple[float, float, float]:
    return -found.accuracy, -found.consistent_fraction, found.mean_output_tokens


def _summary(winner: GateCandidate, num_candidates: int) -> str:
    name, accuracy = variant_label(winner.variant), _percent(winner.accuracy)
    if winner.passed:
        only = "the only candidate" if num_candidates == 1 else f"the best of {num_candidates} candidates"
        return f"{name} wins with {accuracy} and passes the gate as {only}."
    failed = sum(not check.passed for check in winner.checks)
    return (
        f"No candidate passes the gate. The best is {name} with {accuracy}; "
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
            f"The difference between {variant_label(winner.variant)} and the base model is not clear: its interval "
            "holds 0."
        )
    return (*remarks, *evaluations[winner.variant].notes)


def _champion_line(champion: Champion) -> str:
    found = champion.evaluation
    figures = f"{_percent(found.accuracy)} on {_rows(found)}" if found else "without an evaluation on record"
    judge = f"{champion.service}: {variant_label(champion.variant)} ({champion.model_digest[:19]})"
    return f"{judge}, since {champion.served_since}, {figures}."


def _rows(evaluation: Evaluation) -> str:
    return f"{evaluation.benchmark.num_rows} rows of {evaluation.benchmark.uri}"


def _percent(value: float) -> str:
    return f"{100 * value:.1f} %"


def _confidence(evaluation: Evaluation) -> str:
    return f"{100 * evaluation.confidence:g} %"
