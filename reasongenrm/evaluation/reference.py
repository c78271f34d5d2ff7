"""The reference's published RewardBench results, with which the report compares a run.

Source: docs/method.md, "Reference results"; repository Freder-chen/ReasonGenRM at commit 0887f2e. All 2,985 rows, in
percent.
"""

from reasongenrm.records import Record

FOOTNOTE = (
    "As published. It repeats the Safety figure, and the published Score implies about 84.56. "
    "Plain GenRM scores above ReasonGenRM on this benchmark at equal size, which is why all four are always shown."
)


class PublishedResult(Record):
    """One published row, in percent. `starred`: names of the figures that the footnote is about."""

    backbone: str
    variant: str
    score: float
    sections: dict[str, float]
    starred: tuple[str, ...] = ()


def _rows(backbone: str, figures: dict[str, tuple[float, float, float, float, float]]) -> list[PublishedResult]:
    names = ("Chat", "Chat Hard", "Safety", "Reasoning")
    return [
        PublishedResult(
            backbone=backbone, variant=variant, score=score, sections=dict(zip(names, sections, strict=True))
        )
        for variant, (score, *sections) in figures.items()
    ]


PUBLISHED: tuple[PublishedResult, ...] = (
    *_rows(
        "Llama-3.1-8B",
        {
            "base": (71.30, 91.83, 51.97, 78.92, 62.48),
            "genrm": (88.76, 93.30, 81.58, 91.55, 88.60),
            "sft": (82.38, 90.08, 74.45, 87.57, 77.44),
            "dpo": (85.21, 90.64, 79.50, 89.66, 81.06),
        },
    ),
    *(
        row.model_copy(update={"starred": ("Chat Hard",)}) if row.variant == "genrm" else row
        for row in _rows(
            "Qwen2.5-7B",
            {
                "base": (79.78, 96.65, 60.09, 81.69, 80.67),
                "genrm": (88.87, 89.94, 91.69, 91.69, 89.29),
                "sft": (83.70, 91.34, 71.27, 88.51, 83.70),
                "dpo": (86.88, 92.46, 78.40, 89.59, 87.07),
            },
        )
    ),
    *_rows(
        "Qwen2.5-14B",
        {
            "base": (82.28, 95.39, 67.32, 84.73, 81.66),
            "genrm": (89.60, 91.90, 86.95, 90.68, 88.86),
            "sft": (85.89, 91.48, 77.74, 88.65, 85.71),
            "dpo": (88.41, 93.16, 81.69, 89.86, 88.93),
        },
    ),
)
