"""How fast is this on my machine, against the peers' way of the same work?

    python -m benchmarks [sft dpo scoring equality] [--shape NAME] [--scoring-shape NAME] [--budget 20] [--output DIR]
    torchrun --nproc-per-node 8 -m benchmarks ...          the same on several GPUs
    python -m benchmarks NAME ...                          the other benchmarks, each with its own --help: generation,
                                                           stages, judge-load, evaluate-cost, list-scores, intervals

See benchmarks/README.md and docs/speed.md.
"""

import runpy
import sys

from reasongenrm.errors import ReasonGenRMError

OTHERS = {
    "evaluate-cost": "evaluate_cost",
    "generation": "generation",
    "intervals": "interval_coverage",
    "judge-load": "judge_load",
    "list-scores": "list_scores",
    "stages": "stages",
}


def main() -> None:
    """Run what the first argument names, importing nothing else."""
    other = OTHERS.get(sys.argv[1]) if len(sys.argv) > 1 else None
    if other is not None:
        sys.argv[:2] = [f"benchmarks {sys.argv[1]}"]
        try:
            runpy.run_module(f"benchmarks.{other}", run_name="__main__", alter_sys=True)
        except ReasonGenRMError as error:
            sys.exit(f"error: {error}")
        return
    import typer

    from benchmarks.measure import main as measure

    typer.run(measure)


if __name__ == "__main__":
    main()
