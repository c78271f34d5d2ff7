"""publish: a trained judge with its model card, in a folder or on the Hugging Face hub."""

import contextlib
import sys
from typing import Annotated

from typer import Argument, Option

from reasongenrm.cli.console import print_line
from reasongenrm.cli.settings import DEFAULT_STORE, StoreOption
from reasongenrm.processes.extras import require


def publish(
    source: Annotated[str, Argument(metavar="RUN|MODEL", help="A run, for its winner, or a model's s3:// address.")],
    to: Annotated[str, Option(metavar="FOLDER|hub:OWNER/NAME", help="A new folder; or upload to the hub (HF_TOKEN).")],
    public: Annotated[bool, Option("--public", help="Make a new repository on the hub public, not private.")] = False,
    store: StoreOption = DEFAULT_STORE,
) -> None:
    """Write a trained judge with model card and results into a folder, or upload it to the Hugging Face hub.

    Nothing leaves this machine unless --to begins with "hub:".

    [bold]Examples[/bold]

      reasongenrm publish 20261123-074612-3f2a --to my-judge

      reasongenrm publish s3://my-bucket/judges/train_dpo/KEY/DIGEST --store s3://my-bucket/judges --to hub:me/my-judge
    """
    require("data")
    from reasongenrm.runs.local import existing_store
    from reasongenrm.runs.publication import publish_model

    with contextlib.redirect_stdout(sys.stderr), existing_store(store) as opened:
        where = publish_model(opened, source, to, public=public)
    print_line(where)
