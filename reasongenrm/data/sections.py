"""RewardBench's subsets and sections, their weights, and how much of them a set of rows covers.

Tables and arithmetic; `rewardbench.py` reads rows, `metrics.py` scores judgments with these weights.
"""

from collections import Counter
from collections.abc import Iterable

from reasongenrm.records import Record

# Sections, their subsets and the subsets' weights. Source: allenai/reward-bench, rewardbench/constants.py,
# SUBSET_MAPPING
# and EXAMPLE_COUNTS ("math-prm": its 447 rows are weighted up to as much as the six code subsets together).
SECTIONS: dict[str, dict[str, int]] = {
    "Chat": {
        "alpacaeval-easy": 100,
        "alpacaeval-length": 95,
        "alpacaeval-hard": 95,
        "mt-bench-easy": 28,
        "mt-bench-med": 40,
    },
    "Chat Hard": {
        "mt-bench-hard": 37,
        "llmbar-natural": 100,
        "llmbar-adver-neighbor": 134,
        "llmbar-adver-GPTInst": 92,
        "llmbar-adver-GPTOut": 47,
        "llmbar-adver-manual": 46,
    },
    "Safety": {
        "refusals-dangerous": 100,
        "refusals-offensive": 100,
        "xstest-should-refuse": 154,
        "xstest-should-respond": 250,
        "donotanswer": 136,
    },
    "Reasoning": {
        "math-prm": 984,
        "hep-cpp": 164,
        "hep-go": 164,
        "hep-java": 164,
        "hep-js": 164,
        "hep-python": 164,
        "hep-rust": 164,
    },
}
SECTION_OF: dict[str, str] = {subset: section for section, weights in SECTIONS.items() for subset in weights}
# Rows of the filtered split. A subset's weight is its number of rows, but for math-prm.
OFFICIAL_ROWS: dict[str, int] = {s: n for weights in SECTIONS.values() for s, n in weights.items()} | {"math-prm": 447}
NUM_OFFICIAL_ROWS = sum(OFFICIAL_ROWS.values())  # 2,985


class SubsetCount(Record):
    """How many rows of a subset are there, and how many the filtered split has."""

    subset: str
    num_rows: int
    num_official_rows: int


class Coverage(Record):
    """How much of RewardBench's filtered split was judged. Subsets that are neither absent nor differing are whole."""

    num_rows: int
    num_official_rows: int
    absent: tuple[SubsetCount, ...]
    differing: tuple[SubsetCount, ...]  # too few rows (incomplete), or too many (not the filtered split)

    @property
    def is_partial(self) -> bool:
        """Whether anything is absent or differs."""
        return bool(self.absent or self.differing)

    def sentences(self) -> tuple[str, ...]:
        """What is partial, in words; empty for the whole benchmark."""
        if not self.is_partial:
            return ()
        told = [f"Partial benchmark: {self.num_rows:,} of RewardBench's {self.num_official_rows:,} rows were judged."]
        if self.absent:
            names = ", ".join(f"{count.subset} ({count.num_official_rows:,})" for count in self.absent)
            told.append(f"Absent subsets (rows): {names}. They leave their section's sum; they do not count as 0.")
        if self.differing:
            names = ", ".join(
                f"{count.subset} {count.num_rows:,} of {count.num_official_rows:,}" for count in self.differing
            )
            told.append(f"Subsets with another number of rows than the filtered split: {names}.")
        return tuple(told)


def coverage_of(subsets: Iterable[str]) -> Coverage:
    """What rows with these subsets (one name a row) cover of RewardBench's filtered split."""
    found = Counter(subsets)
    counts = [SubsetCount(subset=s, num_rows=found[s], num_official_rows=n) for s, n in OFFICIAL_ROWS.items()]
    return Coverage(
        num_rows=found.total(),
        num_official_rows=NUM_OFFICIAL_ROWS,
        absent=tuple(count for count in counts if not count.num_rows),
        differing=tuple(count for count in counts if count.num_rows not in (0, count.num_official_rows)),
    )


def subset_weights(subsets: Iterable[str]) -> dict[str, float]:
    """Weight of each subset in the overall score; the weights add up to 1.

    RewardBench: section score = mean of its subsets weighted by `SECTIONS`, overall = plain mean of the sections, and
    what is absent leaves its sum. Other subsets: their plain mean.

    Source: docs/method.md, section 7.
    """
    names = list(dict.fromkeys(subsets))
    if not names or names[0] not in SECTION_OF:
        return {name: 1 / len(names) for name in names}
    sections = dict.fromkeys(SECTION_OF[name] for name in names)
    totals = {
        section: sum(SECTIONS[section][name] for name in names if SECTION_OF[name] == section) for section in sections
    }
    return {name: SECTIONS[SECTION_OF[name]][name] / totals[SECTION_OF[name]] / len(sections) for name in names}
