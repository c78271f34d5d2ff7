import gzip
import json
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reasongenrm.data.benchmarks import BenchmarkRow, load_benchmark, spread
from reasongenrm.errors import ConfigError, EmptyStageError, InputError
from tests.judges import REAL_BENCHMARK, benchmark_of, row, write_rows
from tests.waiting import HANG_SECONDS


def rows_of(sizes: dict[str, int]) -> list[BenchmarkRow]:
    return [
        BenchmarkRow(row_id=f"{subset}/{n}", subset=subset, question=(), chosen="yes", rejected="no")
        for subset, size in sizes.items()
        for n in range(size)
    ]


def test_both_orders_of_a_row_swap_the_answers_and_the_label(tmp_path: Path) -> None:
    (only,) = benchmark_of(tmp_path, {"sums": 1}).rows
    first, second = only.prompt("chosen_first"), only.prompt("rejected_first")
    assert (first.answer_a, first.answer_b, first.label) == ("0 + 1 = 1.", "0 + 1 = 3.", "[[A]]")
    assert (second.answer_a, second.answer_b, second.label) == ("0 + 1 = 3.", "0 + 1 = 1.", "[[B]]")
    assert first.prompt_id != second.prompt_id
    assert first.pair_id == second.pair_id == "sums/0"


def test_prompt_may_be_a_list_of_messages(tmp_path: Path) -> None:
    turns = [
        {"role": "user", "content": "Hello"},
        {"role": "assistant", "content": "Hello!"},
        {"role": "user", "content": "2 + 2?"},
    ]
    benchmark = load_benchmark(write_rows(tmp_path / "b.jsonl", [row("chat", 1, prompt=turns), row("chat", 2)]))
    assert [(m.role, m.content) for m in benchmark.rows[0].question][1:] == [
        ("assistant", "Hello!"),
        ("user", "2 + 2?"),
    ]
    assert [m.role for m in benchmark.rows[1].question] == ["user"]


def test_same_id_in_two_subsets_is_two_rows(tmp_path: Path) -> None:
    benchmark = load_benchmark(write_rows(tmp_path / "b.jsonl", [row("donotanswer", 3692), row("hep-python", 3692)]))
    assert [r.row_id for r in benchmark.rows] == ["donotanswer/3692", "hep-python/3692"]


def test_models_names_may_be_missing_and_further_columns_are_left_aside(tmp_path: Path) -> None:
    fields = row("sums", 1, topic="addition")
    del fields["chosen_model"], fields["rejected_model"]
    (only,) = load_benchmark(write_rows(tmp_path / "b.jsonl", [fields])).rows
    assert (only.chosen_model, only.rejected_model) == ("", "")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rejected": None}, r"line 2: 'rejected' is null, no text; expected an object with prompt .*Fix or remove"),
        ({"chosen": ["yes"]}, r"line 2: 'chosen.0' is 'yes', no turn"),
        ({"chosen": [{"role": "user", "content": "x"}]}, r"line 2: 'chosen' does not end with an assistant's turn"),
        ({"chosen": []}, r"line 2: 'chosen' does not end with an assistant's turn"),
        ({"subset": 7}, r"line 2: 'subset' is 7, no text"),
        ({"id": True}, r"line 2: 'id' is True, no text"),
        ({"id": 1.5}, r"line 2: 'id' is 1.5, no text"),
        ({"id": 0}, r"line 2: id '0' of subset 'sums' was already at .*line 1; .*Remove the copy"),
        ({"prompt": 5}, r"line 2: 'prompt' is 5, no list of turns; expected an object with prompt"),
        ({"prompt": "  "}, r"line 2: 'prompt' is empty"),
        ({"prompt": []}, r"line 2: 'prompt' does not end with a user turn"),
        ({"prompt": None}, r"line 2: there is no prompt, and 'chosen' is no transcript"),
        ({"prompt": ["hello"]}, r"line 2: 'prompt.0' is 'hello', no turn"),
        ({"prompt": [{"role": "robot", "content": "x"}]}, r"line 2: 'prompt.0' has the role 'robot'; known are user"),
        ({"prompt": [{"role": "user", "content": 3}]}, r"line 2: 'prompt.0' has 3 as content, no text"),
        ({"prompt": [{"role": "assistant", "content": "x"}]}, r"line 2: 'prompt' does not end with a user turn"),
        ({"chosen": "\ud83d"}, r"line 2: holds half a surrogate pair"),
    ],
)
def test_bad_row_is_named_with_file_line_and_what_to_do(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    uri = write_rows(tmp_path / "bench.jsonl", [row("sums", 0), row("sums", 1, **changes)])
    with pytest.raises(InputError, match=r"bench\.jsonl " + message):
        load_benchmark(uri)


@pytest.mark.parametrize("name", ["chosen", "rejected"])
def test_missing_column_is_named_with_those_found(tmp_path: Path, name: str) -> None:
    fields = row("sums", 1)
    del fields[name]
    uri = write_rows(tmp_path / "bench.jsonl", [row("sums", 0), fields])
    found = rf"bench\.jsonl line 2: column '{name}' is missing, found .*chosen_model.*; expected an object with prompt"
    with pytest.raises(InputError, match=found):
        load_benchmark(uri)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", r"the file has no rows; expected JSON Lines"),
        (b"\n\n", r"the file has no rows"),
        (b"subset,chosen\n", r"line 1: not JSON .*Fix or remove the row"),
        (b'{"prompt": "x"\n', r"line 1: not JSON"),
        (b"\xff\xfe{}\n", r"line 1: not UTF-8"),
        (b'["a"]\n', r"line 1: found a list, no object; expected an object with prompt"),
    ],
)
def test_file_that_is_no_benchmark_is_refused(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "bench.jsonl"
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"bench\.jsonl:? " + message):
        load_benchmark(str(path))


# Rows as people have them.


def turns(*texts: str) -> list[dict[str, str]]:
    return [{"role": ("user", "assistant")[place % 2], "content": text} for place, text in enumerate(texts)]


@pytest.mark.parametrize(
    "changes",
    [
        {"prompt": turns("1 + 1?")},
        {"prompt": turns("1 + 1?"), "chosen": turns("1 + 1?", "2"), "rejected": turns("1 + 1?", "3")},
        {"chosen": turns("1 + 1?", "2")[1:], "rejected": turns("1 + 1?", "3")[1:]},
        {"prompt": None, "chosen": turns("1 + 1?", "2"), "rejected": turns("1 + 1?", "3")},
        {"prompt": [{"from": "human", "value": "1 + 1?"}], "chosen": {"from": "gpt", "value": "2"}},
        {
            "prompt": None,
            "chosen": "\n\nHuman: 1 + 1?\n\nAssistant: 2",
            "rejected": "\n\nHuman: 1 + 1?\n\nAssistant: 3",
        },
    ],
)
def test_turns_give_the_row_that_texts_give(tmp_path: Path, changes: dict[str, Any]) -> None:
    plain = row("sums", 1, prompt="1 + 1?", chosen="2", rejected="3")
    expected = load_benchmark(write_rows(tmp_path / "plain.jsonl", [plain]))
    assert load_benchmark(write_rows(tmp_path / "turns.jsonl", [plain | changes])).rows == expected.rows


def test_row_without_an_id_has_its_number_and_without_a_subset_is_of_all(tmp_path: Path) -> None:
    rows = [{"prompt": "1 + 1?", "chosen": "2", "rejected": "3"} for _ in range(3)]
    rows[1] |= {"id": None, "subset": " ", "chosen_model": None}
    benchmark = load_benchmark(write_rows(tmp_path / "b.jsonl", rows))
    assert [r.row_id for r in benchmark.rows] == ["all/1", "all/2", "all/3"]
    assert benchmark.subsets() == ("all",)
    assert benchmark.rows[1].chosen_model == ""


def test_number_of_a_row_that_is_another_rows_id_is_refused(tmp_path: Path) -> None:
    rows = [row("sums", 2), row("sums", 1, id=None)]
    with pytest.raises(
        InputError, match=r"line 2: id '2' of subset 'sums' was already at .*line 1.*number in the file"
    ):
        load_benchmark(write_rows(tmp_path / "b.jsonl", rows))


def test_two_subsets_and_ids_that_would_have_one_row_id_are_named(tmp_path: Path) -> None:
    rows = [row("a", 0, id="b/c"), row("a/b", 0, id="c")]
    with pytest.raises(
        InputError,
        match=r"line 2: id 'c' of subset 'a/b' and id 'b/c' of subset 'a' at .*line 1 are both called 'a/b/c'",
    ):
        load_benchmark(write_rows(tmp_path / "b.jsonl", rows))
    assert [r.row_id for r in load_benchmark(write_rows(tmp_path / "b.jsonl", rows[:1])).rows] == ["a/b/c"]


def test_rows_without_a_preference_are_dropped_counted_and_said(tmp_path: Path) -> None:
    image = [{"role": "user", "content": [{"type": "image", "image": "cat.png"}]}]
    call = [{"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "f"}}]}]
    rows = [
        row("sums", 0),
        row("sums", 1, rejected="1 + 1 = 2."),
        row("sums", 2, prompt=image),
        row("more", 3, chosen=call),
        row("more", 4, chosen=turns("another question", "4")),
        row("more", 5, rejected=""),
        row("more", 6, chosen="yes", rejected="yes"),
    ]
    benchmark = load_benchmark(write_rows(tmp_path / "b.jsonl", rows))
    assert [r.row_id for r in benchmark.rows] == ["sums/0", "more/5"]  # an empty answer is one: it can lose
    assert benchmark.drops.counts() == {
        "num_in": 7,
        "num_out": 2,
        "num_dropped_equal_answers": 2,
        "num_dropped_image_part": 1,
        "num_dropped_questions_differ": 1,
        "num_dropped_tool_call": 1,
    }
    said = benchmark.said
    assert said.startswith(
        f"{tmp_path / 'b.jsonl'}: 2 benchmark rows in 2 subsets, 2 dropped as equal_answers (first: "
    )
    assert "b.jsonl line 2), 1 dropped as image_part" in said
    assert benchmark.digest == load_benchmark(write_rows(tmp_path / "kept.jsonl", [rows[0], rows[5]])).digest


def test_benchmark_of_ties_alone_is_refused_with_the_count(tmp_path: Path) -> None:
    uri = write_rows(tmp_path / "b.jsonl", [row("sums", n, chosen="yes", rejected="yes") for n in range(2)])
    with pytest.raises(EmptyStageError, match=r"none of 2 records is left: 2 equal_answers .first: .*line 1"):
        load_benchmark(uri)


def test_every_kind_of_file_gives_the_same_rows(tmp_path: Path) -> None:
    import pyarrow
    import pyarrow.parquet

    rows = [{name: str(value) for name, value in row("sums", n).items()} for n in range(2)]
    plain = load_benchmark(write_rows(tmp_path / "b.jsonl", rows))
    lines = (tmp_path / "b.jsonl").read_bytes()
    (tmp_path / "mark.jsonl").write_bytes(b"\xef\xbb\xbf" + lines.replace(b"\n", b"\r\n\r\n"))
    (tmp_path / "b.json").write_text(json.dumps(rows))
    (tmp_path / "b.jsonl.gz").write_bytes(gzip.compress(lines))
    (tmp_path / "b.csv").write_text(
        "\n".join([",".join(rows[0]), *(",".join(f'"{cell}"' for cell in r.values()) for r in rows)])
    )
    table = pyarrow.Table.from_pylist(rows)
    pyarrow.parquet.write_table(table, tmp_path / "b.parquet")
    with pyarrow.CompressedOutputStream(str(tmp_path / "b.jsonl.zst"), "zstd") as packed:
        packed.write(lines)
    for name in ("mark.jsonl", "b.json", "b.jsonl.gz", "b.csv", "b.parquet", "b.jsonl.zst"):
        assert load_benchmark(str(tmp_path / name)).rows == plain.rows, name


def test_columns_are_taken_by_names_of_the_users_own(tmp_path: Path) -> None:
    fields = row("sums", 1)
    theirs = {"question": fields.pop("prompt"), "kind": fields.pop("subset"), **fields}
    uri = write_rows(tmp_path / "b.jsonl", [theirs])
    (only,) = load_benchmark(uri, columns={"prompt": "question", "subset": "kind"}).rows
    assert (only.row_id, only.question[0].content) == ("sums/1", "What is 1 + 1?")
    with pytest.raises(InputError, match=r"line 1: no column 'topic', which evaluate.columns names; found question"):
        load_benchmark(uri, columns={"subset": "topic"})
    with pytest.raises(ConfigError, match=r"a benchmark has no column 'source'"):
        load_benchmark(uri, columns={"source": "kind"})


def test_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"nothing\.jsonl: no such file"):
        load_benchmark(str(tmp_path / "nothing.jsonl"))


def test_rewardbench_subsets_beside_unknown_ones_are_refused_and_a_slip_is_explained(tmp_path: Path) -> None:
    rows = [row("hep-go", 1), row("hep-pyton", 2), row("hep-pyton", 3), row("my-own", 4)]
    with pytest.raises(InputError) as caught:
        load_benchmark(write_rows(tmp_path / "bench.jsonl", rows))
    message = str(caught.value)
    assert "bench.jsonl: 1 rows are of RewardBench's subsets" in message
    assert "'hep-pyton' (2 rows; 'hep-python' meant?), 'my-own' (1 rows)" in message
    assert "bench.jsonl line 2" in message
    assert "a separate file" in message


def test_benchmark_with_subsets_of_its_own_has_no_coverage(tmp_path: Path) -> None:
    benchmark = benchmark_of(tmp_path, {"zebra": 1, "ant": 2})
    assert benchmark.coverage() is None
    assert not benchmark.is_rewardbench
    assert benchmark.subsets() == ("zebra", "ant")


def test_digest_is_of_the_rows_not_of_the_file(tmp_path: Path) -> None:
    rows = [row("sums", n) for n in range(3)]
    (tmp_path / "spaced.jsonl").write_text(
        "\n".join(json.dumps(r, indent=None, separators=(" ,", " : ")) for r in rows)
    )
    plain = load_benchmark(write_rows(tmp_path / "plain.jsonl", rows))
    assert load_benchmark(str(tmp_path / "spaced.jsonl")).digest == plain.digest
    assert load_benchmark(write_rows(tmp_path / "fewer.jsonl", rows[:2])).digest != plain.digest
    assert load_benchmark(str(tmp_path / "plain.jsonl"), limit=2).digest == plain.digest


def test_limit_is_shared_out_in_proportion() -> None:
    taken = Counter(r.subset for r in spread(rows_of({"big": 60, "middle": 30, "small": 10}), 10, seed=0))
    # One each first; 7 left over (59, 29, 9) of 97: exactly 4.26, 2.09, 0.65, so the last one goes to small.
    assert taken == {"big": 5, "middle": 3, "small": 2}


def test_limit_below_the_number_of_subsets_takes_the_large_ones() -> None:
    taken = Counter(r.subset for r in spread(rows_of({"a": 1, "b": 50, "c": 2, "d": 49}), 2, seed=0))
    assert taken == {"b": 1, "d": 1}


def test_limit_draws_with_its_seed() -> None:
    rows = rows_of({"a": 100, "b": 100})
    assert spread(rows, 20, seed=1) == spread(rows, 20, seed=1)
    assert spread(rows, 20, seed=1) != spread(rows, 20, seed=2)


@given(
    sizes=st.lists(st.integers(1, 40), min_size=1, max_size=12),
    limit=st.integers(1, 200),
    seed=st.integers(0, 3),
)
def test_limit_gives_exactly_so_many_rows_in_file_order_and_leaves_no_subset_out_that_fits(
    sizes: list[int], limit: int, seed: int
) -> None:
    rows = rows_of({f"s{n}": size for n, size in enumerate(sizes)})
    taken = spread(rows, limit, seed)
    assert len(taken) == min(limit, len(rows))
    assert taken == [r for r in rows if r in set(taken)]
    if limit >= len(sizes):
        assert len({r.subset for r in taken}) == len(sizes)


def test_real_partial_benchmark_loads_with_2196_rows_of_17_subsets() -> None:
    if not REAL_BENCHMARK.is_file():
        pytest.skip(f"{REAL_BENCHMARK} is not there: the real rows are shared beside the project, not in it")
    benchmark = load_benchmark(str(REAL_BENCHMARK))
    coverage = benchmark.coverage()
    assert len(benchmark.rows) == 2196
    assert coverage is not None
    assert {c.subset for c in coverage.absent} == {
        *("mt-bench-easy", "mt-bench-med", "mt-bench-hard", "refusals-dangerous", "refusals-offensive", "math-prm"),
    }
    assert [(c.subset, c.num_rows) for c in coverage.differing] == [
        ("xstest-should-refuse", 118),
        ("xstest-should-respond", 249),
    ]
    assert len(load_benchmark(str(REAL_BENCHMARK), limit=48).subsets()) == 17


HUB_PROGRAM = """
import sys
from reasongenrm.errors import InputError
from reasongenrm.data.benchmarks import load_benchmark
try:
    benchmark = load_benchmark("allenai/reward-bench")
    print(len(benchmark.rows), benchmark.rows[0].row_id, benchmark.digest)
except InputError as error:
    print(error)
"""


def run_beside(folder: Path) -> str:
    """Load the hub's name in a process of its own: `datasets` takes a folder of that name for the data set, as from a
    mirror."""
    environment = {"HF_HUB_OFFLINE": "1", "HF_HOME": str(folder / "hf"), "PYTHONPATH": str(Path(__file__).parents[2])}
    done = subprocess.run(
        [sys.executable, "-c", HUB_PROGRAM],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=HANG_SECONDS,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_hub_name_reads_the_split_filtered(tmp_path: Path) -> None:
    import pyarrow
    import pyarrow.parquet

    data = tmp_path / "allenai" / "reward-bench" / "data"
    data.mkdir(parents=True)
    splits = {"filtered": [row("donotanswer", 1), row("hep-go", 2)], "raw": [row("hep-go", n) for n in range(9)]}
    for split, rows in splits.items():
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), data / f"{split}-00000-of-00001.parquet")
    same = load_benchmark(write_rows(tmp_path / "same.jsonl", splits["filtered"]))
    assert run_beside(tmp_path).split() == ["2", "donotanswer/1", same.digest]


def test_hub_that_cannot_be_reached_says_what_to_do(tmp_path: Path) -> None:
    said = run_beside(tmp_path)
    assert "allenai/reward-bench, split 'filtered': neither a local file nor a data set that the hub gives" in said
    assert "give a JSON Lines file" in said
