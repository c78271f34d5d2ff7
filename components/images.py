"""The images that the tasks run in, by what must be installed. Tags are versions: KFP's cache key has the name, not the content."""

from reasongenrm import __version__

REGISTRY = "ghcr.io/reasongenrm"

CPU = f"{REGISTRY}/reasongenrm-cpu:{__version__}"  # data and decisions
TRAIN = f"{REGISTRY}/reasongenrm-train:{__version__}"  # torch, TRL, DeepSpeed: import, scoring, training
VLLM = f"{REGISTRY}/reasongenrm-vllm:{__version__}"  # generation: teacher, policy, judge
