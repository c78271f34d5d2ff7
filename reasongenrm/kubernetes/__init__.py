"""The Kubernetes API server, in plain dicts."""
