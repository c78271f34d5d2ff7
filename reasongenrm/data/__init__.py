"""What flows in: preference pairs, benchmark rows, prompts, chat templates, the imported model."""
