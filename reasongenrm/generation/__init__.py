"""One seam, three engines: `open_engine` gives the one that a model's address and the config ask for.

Nothing heavy is imported before an engine is opened.
"""

from pathlib import Path

from reasongenrm.config import EngineConfig
from reasongenrm.errors import ConfigError
from reasongenrm.generation.seam import Engine, Generation, GenerationRequest, Sampling

__all__ = ["Engine", "Generation", "GenerationRequest", "Sampling", "is_endpoint", "open_engine"]


def is_endpoint(model: str | Path) -> bool:
    """Whether `model` is the address of a server rather than a checkpoint."""
    return isinstance(model, str) and model.lower().startswith(("http://", "https://"))


def open_engine(
    model: str | Path, config: EngineConfig, *, model_name: str | None = None, keep_markup: bool = False
) -> Engine:
    """Open the engine for a model. Close it when done (`contextlib.closing`).

    Args:
        model: an http(s):// address of an OpenAI-compatible API, or a local folder with a checkpoint.
        config: `kind` chooses the engine of a checkpoint; an address always means the endpoint engine.
        model_name: for an endpoint, the model to ask for (None: the only one that it lists); for a checkpoint, what the
            records call it (None: the folder's name; give one where the folder's name changes from run to run).
        keep_markup: see `EndpointEngine`.

    Raises:
        ConfigError: another kind of address, `keep_markup` for a checkpoint, or vLLM is asked for and not installed.
        InputError: the folder holds no checkpoint that can be loaded.
        EngineError: the endpoint does not answer.
    """
    if is_endpoint(model):
        from reasongenrm.generation.endpoint import EndpointEngine

        return EndpointEngine(str(model), config, model_name=model_name, keep_markup=keep_markup)
    if "://" in str(model):
        raise ConfigError(f"{model}: expected http(s)://.../v1 or a local folder. Download the checkpoint first.")
    if keep_markup:
        raise ConfigError(f"{model}: keep_markup is for endpoints only. Leave it out.")
    path = Path(model)
    name = model_name if model_name is not None else path.resolve().name
    if config.kind == "vllm":
        from reasongenrm.generation.vllm import VLLMEngine

        return VLLMEngine(path, config, model_name=name)
    from reasongenrm.generation.transformers import TransformersEngine

    return TransformersEngine.load(path, config, model_name=name)
