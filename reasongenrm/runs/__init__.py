"""Pipeline runs: one task, a run on this machine, a run on Kubeflow Pipelines."""
