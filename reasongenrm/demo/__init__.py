"""The demo's data and teacher, and the smallest run's model and data."""
