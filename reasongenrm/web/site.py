"""The page's process: environment that gradio reads on import, then uvicorn."""

import asyncio
import os
import socket
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from reasongenrm.web.app import WebSettings

_STOP_SECONDS = 3  # for streams under way, after a SIGTERM
# gradio reads these at its import. Its own default folder for files is below the home, which may be read-only.
_GRADIO = {
    "GRADIO_ANALYTICS_ENABLED": "False",
    "GRADIO_TEMP_DIR": str(Path(tempfile.gettempdir()) / "reasongenrm-web"),
    "HF_HUB_OFFLINE": "1",
}


def serve(settings: "WebSettings", host: str, port: int, say: Callable[[str], None]) -> None:
    """Serve the page until SIGTERM or Ctrl-C.

    Args:
        port: 0 takes a free one.
        say: is told the page's address.

    Raises:
        ConfigError: the judge's URL or key cannot be used.
    """
    import uvicorn

    for name, value in _GRADIO.items():
        os.environ.setdefault(name, value)
    from reasongenrm.web.app import make_app

    async def run() -> None:  # gradio makes its locks on the loop that it is built in
        listening = socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
        config = uvicorn.Config(make_app(settings), log_level="warning", timeout_graceful_shutdown=_STOP_SECONDS)
        say(f"the page is at http://{host}:{listening.getsockname()[1]}{settings.root_path} (Ctrl-C stops)")
        await uvicorn.Server(config).serve(sockets=[listening])

    asyncio.run(run())
