"""The process of one vLLM replica (vllm_process.py is the other end of its connection).

Run as `python -m reasongenrm.generation.vllm_worker DESCRIPTOR`, an inherited file descriptor (`workers.py`). First comes a
`ReplicaSettings`, answered once vLLM has started; then (number, `Task`), or a function, answered by what it returns. Every step of
vLLM's that finishes samples is answered with what `Replica.step` returns. An `EngineError` is an answer, too, and the last.
"""

from reasongenrm.generation.vllm_replica import Replica
from reasongenrm.processes.workers import Caller, run_worker

GRACE_SECONDS = 15.0  # for vLLM to stop by itself; afterwards its processes are killed


def serve(caller: Caller) -> None:
    """Be a replica for the caller."""
    replica = Replica(caller.recv())
    caller.send("ready")
    while True:
        while replica.is_idle or caller.has_message:
            message = caller.recv()
            if callable(message):
                caller.send(message(replica.llm))
            else:
                replica.submit(*message)
        num_written, whole = replica.step()
        if num_written:
            caller.send((num_written, whole))


if __name__ == "__main__":
    run_worker(serve, GRACE_SECONDS)
