"""What the judge can answer instead of a judgment: HTTP status, and what the caller should do."""

from reasongenrm.errors import EngineError


class JudgeError(EngineError):
    """A judgment that could not be given."""

    status = 500  # of the HTTP answer
    code = "internal"  # for programs; does not change
    num_chars_over: int | None = None  # of texts that are too long

    def __init__(self, message: str, *, param: str | None = None, retry_after_seconds: int | None = None) -> None:
        super().__init__(message)
        self.param = param  # the request's field that is at fault, if one is
        self.retry_after_seconds = retry_after_seconds  # when it is worth asking again; None: not by itself


class TooLongError(JudgeError):
    """The texts do not fit into the model's context, and were not to be cut.

    Args:
        num_chars_over: about how many characters too many they have; None: the predictor does not tell.
    """

    status, code = 422, "too_long"

    def __init__(self, message: str, num_chars_over: int | None = None) -> None:
        super().__init__(message)
        self.num_chars_over = num_chars_over


class TooFewTokensError(JudgeError):
    """max_tokens leaves no room for a verdict."""

    status, code = 422, "too_few_tokens"


class FilteredTextError(JudgeError):
    """The predictor's content filter stopped these texts."""

    status, code = 422, "filtered"


class OverloadedError(JudgeError):
    """Too much is under way already, here or at the predictor."""

    status, code = 429, "overloaded"


class PredictorRefusedError(JudgeError):
    """The predictor answered something that is no completion."""

    status, code = 502, "predictor_refused"


class UnreadVerdictError(JudgeError):
    """The predictor answered, and no verdict could be read where one is needed."""

    status, code = 502, "unread"


class PredictorUnavailableError(JudgeError):
    """The predictor cannot be reached, or broke off."""

    status, code = 503, "predictor_unavailable"


class PredictorTimeoutError(JudgeError):
    """The predictor did not answer in time."""

    status, code = 504, "predictor_timeout"
