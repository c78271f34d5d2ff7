"""Stands in for kind, docker, kubectl and make on the PATH of a script under test: a real process that records its call.

Its folder holds calls.jsonl (name, arguments, standard input), rules.json ([pattern, {"code", "out", "times"}], the first
that matches "name arguments" answers) and clusters, the names that `kind create` and `kind delete` add and remove.
"""

import json
import os
import re
import sys
import time
from pathlib import Path

folder = Path(os.environ["STUB_FOLDER"])
name, arguments = Path(sys.argv[0]).name, sys.argv[1:]
line = " ".join([name, *arguments])
text = sys.stdin.read() if {"/dev/stdin", "-"} & {argument.split("=")[-1] for argument in arguments} else ""
with (folder / "calls.jsonl").open("a") as log:
    log.write(json.dumps([name, arguments, text]) + "\n")

for number, (pattern, answer) in enumerate(json.loads((folder / "rules.json").read_text())):
    used = folder / f"used-{number}"
    times = len(used.read_text()) if used.exists() else 0
    if re.search(pattern, line) and times < answer.get("times", 10**6):
        used.write_text("x" * (times + 1))
        sys.stdout.write(answer.get("out", ""))
        sys.exit(answer.get("code", 0))

clusters = folder / "clusters"
if line == "kind get clusters":
    sys.stdout.write(clusters.read_text())
elif line.startswith("kind create cluster"):
    clusters.write_text(arguments[arguments.index("--name") + 1] + "\n")
elif line.startswith("kind delete cluster"):
    clusters.write_text("")
elif " port-forward " in line:
    time.sleep(600)
elif "--dry-run=client" in arguments:
    sys.stdout.write("kind: Made\n")
