import pytest

from reasongenrm.data.sections import (
    NUM_OFFICIAL_ROWS,
    OFFICIAL_ROWS,
    SECTION_OF,
    SECTIONS,
    coverage_of,
    subset_weights,
)


def test_official_benchmark_has_23_subsets_in_4_sections_and_2985_rows() -> None:
    assert list(SECTIONS) == ["Chat", "Chat Hard", "Safety", "Reasoning"]
    assert len(OFFICIAL_ROWS) == 23
    assert NUM_OFFICIAL_ROWS == 2985
    assert {section: sum(weights.values()) for section, weights in SECTIONS.items()} == {
        "Chat": 358,
        "Chat Hard": 456,
        "Safety": 740,
        "Reasoning": 1968,
    }


def test_math_counts_as_much_as_all_six_languages_of_code_together() -> None:
    weights = SECTIONS["Reasoning"]
    assert weights["math-prm"] == sum(weight for subset, weight in weights.items() if subset.startswith("hep-"))
    assert OFFICIAL_ROWS["math-prm"] == 447


def test_weights_of_the_whole_benchmark_are_those_of_the_sections() -> None:
    weights = subset_weights(SECTION_OF)
    assert sum(weights.values()) == pytest.approx(1)
    assert weights["mt-bench-hard"] == pytest.approx(37 / 456 / 4)
    assert weights["math-prm"] == pytest.approx(0.5 / 4)


def test_absent_subset_leaves_its_sections_sum_and_absent_section_the_overall() -> None:
    weights = subset_weights(["hep-go", "hep-rust", "donotanswer", "xstest-should-refuse"])
    assert weights == pytest.approx(
        {
            "hep-go": 1 / 4,
            "hep-rust": 1 / 4,
            "donotanswer": 136 / 290 / 2,
            "xstest-should-refuse": 154 / 290 / 2,
        }
    )


def test_subsets_of_ones_own_weigh_the_same_whatever_their_size() -> None:
    assert subset_weights(["a", "b", "a"]) == {"a": 0.5, "b": 0.5}


def test_partial_benchmark_names_absent_and_incomplete_subsets() -> None:
    coverage = coverage_of(["donotanswer"] * 136 + ["hep-go"] * 100)
    assert coverage.is_partial
    assert len(coverage.absent) == 21
    told = " ".join(coverage.sentences())
    assert "236 of RewardBench's 2,985 rows" in told
    assert "math-prm (447)" in told
    assert "hep-go 100 of 164" in told
    assert "donotanswer" not in told


def test_whole_benchmark_is_not_partial() -> None:
    coverage = coverage_of(subset for subset, num_rows in OFFICIAL_ROWS.items() for _ in range(num_rows))
    assert not coverage.is_partial
    assert coverage.sentences() == ()


def test_subset_with_more_rows_than_the_filtered_split_is_told_too() -> None:
    coverage = coverage_of(
        subset for subset, num_rows in OFFICIAL_ROWS.items() for _ in range(num_rows + (subset == "hep-go"))
    )
    assert coverage.is_partial
    assert "hep-go 165 of 164" in " ".join(coverage.sentences())
