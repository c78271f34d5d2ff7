"""Every error that a user can meet, in one tree, with its exit code.

    ReasonGenRMError              anything the user, the data or the surroundings can cause; exit code 1
    |- InputError                 a file, a row or a model folder is not what was expected; exit code 2
    |- ConfigError                a config file or an option is wrong; exit code 2
    |- StoreError                 the object store refused, failed, or holds something damaged; exit code 3
    |- EngineError                a generation engine or endpoint failed for good; exit code 4
    |- TrainingError              a loss became NaN or infinite, or nothing was left to train on; exit code 5
    |- EmptyStageError            a stage dropped every record; exit code 6
    `- ClusterError               Kubernetes or Kubeflow refused, failed, or does not hold what was expected; exit code 7

A message stands alone: where, what was found, what was expected, what to do.
"""


class ReasonGenRMError(Exception):
    """Base of all errors that end a command with a message instead of a traceback."""

    exit_code = 1


class InputError(ReasonGenRMError, ValueError):
    """Bad input data: names the file, the row, what was expected and what to do."""

    exit_code = 2


class ConfigError(ReasonGenRMError, ValueError):
    """A configuration that cannot be used."""

    exit_code = 2


class StoreError(ReasonGenRMError):
    """The object store refused, failed, or holds an artifact whose bytes do not match its manifest."""

    exit_code = 3


class EngineError(ReasonGenRMError):
    """A generation engine failed after its retries."""

    exit_code = 4


class TrainingError(ReasonGenRMError):
    """Training cannot go on."""

    exit_code = 5


class EmptyStageError(ReasonGenRMError):
    """A stage has nothing left to hand on; the message counts the causes."""

    exit_code = 6


class ClusterError(ReasonGenRMError):
    """The Kubernetes API, KServe, Kubeflow Trainer or Kubeflow Pipelines refused or failed."""

    exit_code = 7
