"""What the product does in a Kubernetes cluster: a small client, TrainJobs, deployments.

Nothing here imports `kubernetes` at module level: a laptop without the extra `cluster` runs everything else.
"""
