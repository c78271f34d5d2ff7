"""Pipeline runs: a task, a run on this machine, a run on Kubeflow Pipelines."""
