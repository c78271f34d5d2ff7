"""One KFP adapter per stage: a small function whose body calls `reasongenrm`, and nothing else."""
