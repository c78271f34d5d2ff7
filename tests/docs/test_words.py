"""The check of phrases finds them across lines and comments, and says what to write."""

from docs import words

KNOWN = words.phrases("# a comment\n\n\\banew\\b   again\n\\bso many rows\\b  the number\n")


def test_phrases_are_found_with_file_line_and_a_better_one() -> None:
    text = "Written anew.\nIt has so\n    # many rows, ANEW\n"
    assert words.stumbles("a.md", text, KNOWN) == [
        "a.md:1: 'anew'; write: again",
        "a.md:2: 'so # many rows'; write: the number",
        "a.md:3: 'ANEW'; write: again",
    ]


def test_parts_of_other_words_are_none() -> None:
    assert words.stumbles("a.md", "Canewood has so many.", KNOWN) == []
