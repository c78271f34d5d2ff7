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


_SECTIONS = ("Chat", "Chat Hard", "Safety", "Reasoning")
_TABLE = """
Llama-3.1-8B  base   71.30  91.83  51.97   78.92  62.48
Llama-3.1-8B  genrm  88.76  93.30  81.58   91.55  88.60
Llama-3.1-8B  sft    82.38  90.08  74.45   87.57  77.44
Llama-3.1-8B  dpo    85.21  90.64  79.50   89.66  81.06
Qwen2.5-7B    base   79.78  96.65  60.09   81.69  80.67
Qwen2.5-7B    genrm  88.87  89.94  91.69*  91.69  89.29
Qwen2.5-7B    sft    83.70  91.34  71.27   88.51  83.70
Qwen2.5-7B    dpo    86.88  92.46  78.40   89.59  87.07
Qwen2.5-14B   base   82.28  95.39  67.32   84.73  81.66
Qwen2.5-14B   genrm  89.60  91.90  86.95   90.68  88.86
Qwen2.5-14B   sft    85.89  91.48  77.74   88.65  85.71
Qwen2.5-14B   dpo    88.41  93.16  81.69   89.86  88.93
"""


def _published(line: str) -> PublishedResult:
    backbone, variant, score, *figures = line.split()
    named = dict(zip(_SECTIONS, figures, strict=True))
    return PublishedResult(
        backbone=backbone,
        variant=variant,
        score=float(score),
        sections={name: float(figure.rstrip("*")) for name, figure in named.items()},
        starred=tuple(name for name, figure in named.items() if figure.endswith("*")),
    )


PUBLISHED = tuple(_published(line) for line in _TABLE.strip().splitlines())
