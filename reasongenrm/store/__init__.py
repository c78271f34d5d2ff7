"""Artifacts in S3-compatible storage: written atomically, verified when read; and records of runs and of what is served."""
