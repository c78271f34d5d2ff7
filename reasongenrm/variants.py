"""The variants of a run, one entry each: what it is called, how it is asked, what it is trained on.

A new variant is an entry here, its config section, and its steps in the pipeline.
"""

from dataclasses import dataclass, field
from typing import Annotated, Literal

from pydantic import AfterValidator

from reasongenrm.records import OpeningRole

JudgeStyle = Literal["plain", "verdict", "reason"]  # plain chat; the verdict at once; a reason, then the verdict
OPENINGS: dict[JudgeStyle, OpeningRole | None] = {"plain": None, "verdict": "assistant", "reason": "reason"}

BASE = "base"


@dataclass(frozen=True)
class Variant:
    """One variant (docs/method.md, sections 3, 6 and 7)."""

    name: str  # in configs, artifacts and file names
    label: str  # in reports
    style: JudgeStyle  # how it is asked
    trained_from: str | None = None  # the variant whose weights its training starts from; None: it is not trained
    trained_on: Literal["examples", "preferences"] | None = None  # what its training reads
    is_candidate: bool = False  # whether the gate considers it, unless a config says otherwise
    meaning: str = field(kw_only=True)  # in one line, for those who read a report for the first time

    @property
    def opening_role(self) -> OpeningRole:
        """The turn that a generation of its checkpoint begins in, if nothing else is asked for."""
        return OPENINGS[self.style] or "assistant"


VARIANTS: dict[str, Variant] = {
    variant.name: variant
    for variant in (
        Variant(BASE, "base", "plain", meaning="the model as it came, asked in plain chat; not trained"),
        Variant(
            *("genrm", "GenRM", "verdict", BASE, "examples"),
            meaning="base, trained to write the verdict at once, without a reason",
        ),
        # The product is a judge with reasons.
        Variant(
            *("sft", "ReasonGenRM-sft", "reason", BASE, "examples"),
            is_candidate=True,
            meaning="base, trained to write a reason, then the verdict, on the teacher's best reasons",
        ),
        Variant(
            *("dpo", "ReasonGenRM-dpo", "reason", "sft", "preferences"),
            is_candidate=True,
            meaning="sft, trained further to prefer the better of its own reasons (DPO)",
        ),
    )
}


def _known(name: str) -> str:
    if name not in VARIANTS:
        raise ValueError(f"'{name}' is no variant; expected one of {', '.join(VARIANTS)}")
    return name


VariantName = Annotated[str, AfterValidator(_known)]


def learns_preferences(name: str) -> bool:
    """Whether a variant is trained on preferences between reasons (DPO)."""
    return name in VARIANTS and VARIANTS[name].trained_on == "preferences"


def variant_label(name: str) -> str:
    """A variant as reports call it; the name of a judge outside a run stays as it is."""
    return VARIANTS[name].label if name in VARIANTS else name
