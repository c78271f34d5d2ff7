"""Runs one component in its pod: `python -m reasongenrm.components NAME EXECUTOR_INPUT`.

A lightweight component carries its own source in its command, which KFP repeats six times in the state of a run. Our
images have the components installed, so a compiled pipeline names them; a local run still takes KFP's way.
"""

import importlib
import json
import sys

from kfp.dsl.executor import Executor


def main() -> None:
    """Call the component with what KFP's launcher hands over (kubeflow/pipelines, sdk/python/kfp/dsl/executor_main.py
    at 2.17.0)."""
    name, executor_input = sys.argv[1:]
    component = vars(importlib.import_module(f"reasongenrm.components.{name}.component"))[name]
    Executor(executor_input=json.loads(executor_input), function_to_execute=component).execute()


if __name__ == "__main__":
    main()
