class Platform:
    """As vLLM has it."""

    def get_device_name(self) -> str:
        return "none"


current_platform = Platform()
