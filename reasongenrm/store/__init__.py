"""Artifacts in S3-compatible storage, written atomically and verified when read; records of runs."""
