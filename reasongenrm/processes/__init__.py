"""Child processes that end with their parent, workers, and what this installation has."""
