"""convert: how a file of preferences is read, and the same rows in the project's own form."""

import json
from collections.abc import Mapping
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import Annotated, Any

from rich.text import Text
from typer import Argument, Option

from reasongenrm.cli.console import out, print_json, print_line, print_note
from reasongenrm.cli.settings import ColumnsOption, ConfigOption, JsonOption, SetOption, columns_of, make_config
from reasongenrm.errors import ConfigError, InputError

SHOWN_CHARS = 300  # of one text of the first row


def convert(
    file: Annotated[str, Argument(metavar="FILE|URI", help="Preferences: a file, s3:// or a hub name.")],
    columns: ColumnsOption = None,
    output: Annotated[
        Path | None, Option("--output", "-o", metavar="OUT", help="Write the pairs here, as JSON Lines (.jsonl).")
    ] = None,
    config: ConfigOption = None,
    assignments: SetOption = [],
    as_json: JsonOption = False,
) -> None:
    """Show how preferences are read: the format, the first row before and after, and what is dropped.

    With -o the pairs are written as message lists, which every command takes. OUT is there whole or not at all.

    [bold]Examples[/bold]

      reasongenrm convert pairs.csv

      reasongenrm convert pairs.csv --columns prompt=question,chosen=good,rejected=bad -o pairs.jsonl

      reasongenrm convert nectar.parquet --set pairs.ranked=neighbours --set pairs.bad_rows=drop -o pairs.jsonl
    """
    from reasongenrm.data.pairs import as_messages, parse_pairs, read_rows, said_of
    from reasongenrm.data.rows import BadRow
    from reasongenrm.records import Drops

    if output is not None and output.suffix != ".jsonl":
        raise ConfigError(
            f"convert: --output {output}: expected a name that ends in .jsonl, since JSON Lines go there."
        )
    settings = make_config(config, [*columns_of(columns), *assignments]).pairs
    _, rows = read_rows(file, settings)
    said = said_of(rows, file, settings)
    drops = Drops()
    # A look is at all rows, so that each kind of bad row is seen at once; what is written is what a run reads.
    looked = settings if output else settings.model_copy(update={"bad_rows": "drop"})
    pairs = parse_pairs(rows, drops, looked)
    drops.num_out = len(pairs)
    before = next(row for _, row in rows if not isinstance(row, BadRow))
    after = list(as_messages(pairs))
    if output is not None:
        drops.require_some("convert", f"{output} is not written.")
        _write(output, after)
    if as_json:
        first = {"before": _shown(before), "after": _shown(after[:1])}
        print_json({"read_as": said, "counts": drops.counts(), **first})
        return
    print_line(said)
    print_line("the first row:")
    out.print(Text(json.dumps(_shown(before), indent=2, ensure_ascii=False)), soft_wrap=True)
    print_line("the first pair:" if after else "no pair is left")
    for row in after[:1]:
        out.print(Text(json.dumps(_shown(row), indent=2, ensure_ascii=False)), soft_wrap=True)
    print_line(", ".join(f"{name.removeprefix('num_')} {count:,}" for name, count in drops.counts().items()))
    for cause, example in drops.examples.items():
        print_note(f"first {cause}: {example}")
    if output is None and settings.bad_rows == "error":
        try:
            parse_pairs(rows, Drops(), settings)
        except InputError as error:
            print_note(f"a run would stop: {error}")
    if output is not None:
        print_note(f"wrote {output.resolve()}: {len(after):,} pairs")


def _write(path: Path, rows: list[dict[str, Any]]) -> None:
    """Rows as JSON Lines, through a file next to it, so that a kill or a full disk leaves no half of them."""
    try:
        with NamedTemporaryFile("w", encoding="utf-8", dir=path.parent, prefix=f".{path.name}.", delete=False) as file:
            new = Path(file.name)
            try:
                file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
                file.flush()
                new.chmod(0o644)  # temporary files are their owner's alone
                new.replace(path)
            except BaseException:
                new.unlink()
                raise
    except OSError as error:
        raise ConfigError(
            f"convert: --output {path} cannot be written: {error.strerror}. Choose another place."
        ) from error


def _shown(value: Any) -> Any:
    """A value as JSON can show it: a date or bytes of Parquet as text, and a long text shortened."""
    if isinstance(value, Mapping):
        return {str(name): _shown(inner) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_shown(inner) for inner in value]
    if value is None or isinstance(value, bool | int | float):
        return value
    text = str(value)
    return text if len(text) <= SHOWN_CHARS else f"{text[:SHOWN_CHARS]}... ({len(text):,} characters)"
