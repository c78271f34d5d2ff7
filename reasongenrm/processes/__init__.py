"""Processes that end with their parent, and what this machine has installed."""
