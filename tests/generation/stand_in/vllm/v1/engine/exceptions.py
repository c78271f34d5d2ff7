class EngineDeadError(Exception):
    """As vLLM has it."""
