"""Print an image's reference, REGISTRY/NAME:TAG, from the table that adapters and kustomize read: `reference.py
NAME`."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from reasongenrm.components.images import read_table

sys.stdout.write(read_table()[sys.argv[1]] + "\n")
