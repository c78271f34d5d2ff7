"""The API server of a cluster, in dicts."""
