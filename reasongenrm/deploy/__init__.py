"""The winner's InferenceService: rendered, checked, rolled out, proven by golden judgments, rolled back."""
