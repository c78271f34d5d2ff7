"""What a check of `doctor` found, and what to do about it."""

from dataclasses import dataclass


@dataclass
class Finding:
    """One thing that was looked at."""

    name: str
    ok: bool
    found: str
    advice: str  # what to do; "" if it is as it should be
    needed: bool = True  # whether it makes the doctor fail when it is not

    def __post_init__(self) -> None:
        self.advice = "" if self.ok else self.advice
