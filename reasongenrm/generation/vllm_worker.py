"""The process of one replica: does what comes through a connection until that closes (vllm_process.py has the near end).

Run as `python -m reasongenrm.generation.vllm_worker DESCRIPTOR`, an inherited file descriptor. First comes a `ReplicaSettings`, answered
once vLLM has started; then (number, `Task`), or a function, answered by what it returns. Every step of vLLM's that finishes samples is
answered with what `Replica.step` returns. An `EngineError` is an answer, too, and the last.
"""

import gc
import os
import signal
import sys
import threading
import time
from contextlib import suppress
from multiprocessing.connection import Connection
from queue import SimpleQueue
from typing import Any

from reasongenrm.errors import EngineError
from reasongenrm.generation.vllm_replica import Replica

GRACE_SECONDS = 15.0  # for vLLM to stop by itself; afterwards its processes are killed


def serve(connection: Connection) -> None:
    """Be a replica for whoever holds the connection's other end."""
    # vLLM forks. A copy of our end in a process that outlives us would hide our death from the other end.
    os.register_at_fork(after_in_child=connection.close)
    settings = connection.recv()
    inbox: SimpleQueue[Any] = SimpleQueue()
    threading.Thread(target=_read, args=(connection, inbox), daemon=True).start()
    try:
        replica = Replica(settings)
        connection.send("ready")
        while True:
            while replica.is_idle or not inbox.empty():
                message = inbox.get()
                if message is None:
                    return
                if callable(message):
                    connection.send(message(replica.llm))
                else:
                    replica.submit(*message)
            num_written, whole = replica.step()
            if num_written:
                connection.send((num_written, whole))
    except EngineError as error:
        connection.send(error)


def _read(connection: Connection, inbox: "SimpleQueue[Any]") -> None:
    """Empty the connection while vLLM works. When it closes, stop; when that takes too long, end the whole group."""
    with suppress(EOFError, ConnectionResetError):
        while True:
            inbox.put(connection.recv())
    inbox.put(None)
    time.sleep(GRACE_SECONDS)
    os.killpg(0, signal.SIGKILL)


if __name__ == "__main__":
    with suppress(BrokenPipeError):  # whom an answer was for has gone
        serve(Connection(int(sys.argv[1])))
    gc.collect()  # vLLM ends its engine's process when the LLM object goes
    os.killpg(0, signal.SIGKILL)  # and whatever it forgot, with us
