"""The one pipeline, the cluster's resources for it, and what runs it on a laptop."""
