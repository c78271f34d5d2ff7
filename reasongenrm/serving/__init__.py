"""A small OpenAI-compatible server for a checkpoint."""
