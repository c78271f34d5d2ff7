"""What a server does not take of a chat completion request, told beforehand or found out from its refusals.

Each lack is said once, in the log. Fields that are left out are those whose loss changes how a text is drawn or what is
known of it, never what is asked.

Sources of the refusals: OpenAI's codes `unsupported_parameter` and `unsupported_value` with `param`, and its 403 "You
are not allowed to request logprobs from this model"; vLLM's "Requested sample logprobs of 20, which is greater than max
allowed: 5"; text-generation-inference's "`top_n_tokens` must be >= 0 and <= 5. Given: 20".
"""

import logging
import re
from collections.abc import Mapping
from typing import Any

from reasongenrm.config import EndpointConfig

logger = logging.getLogger(__name__)

_REFUSED = re.compile(
    r"not support|unsupported|not allowed|only the default|only .*1 is allowed|not enabled", re.IGNORECASE
)
_MOST_LOGPROBS = re.compile(
    r"logprobs of \d+, which is greater than max allowed: (\d+)"
    r"|top_n_tokens` must be >= 0 and <= (\d+)"
    r"|top_logprobs\D{0,80}\[0, ?(\d+)\]"
    r"|top_logprobs\D{0,80}(?:less than or equal to|<=|at most) (\d+)"
)
# What is left out by itself, and what a reader of the log should know.
_OPTIONAL = {
    "temperature": "it draws at its own temperature, 1",
    "top_p": "it draws from all tokens",
    "seed": "its texts differ from run to run",
}


class ServerLacks:
    """What one server lacks.

    Args:
        name: the server's, for the log.
        told: what the config says beforehand; None: nothing.
    """

    def __init__(self, name: str, told: EndpointConfig | None = None) -> None:
        told = told or EndpointConfig()
        self._name = name
        self._limit_field = told.limit_field
        self._left_out = set() if told.temperature else {"temperature"}
        self._top_logprobs = told.top_logprobs
        self._said: set[str] = set()

    def fit(self, body: Mapping[str, Any]) -> dict[str, Any]:
        """A body without what the server lacks."""
        fitted = {name: value for name, value in body.items() if name not in self._left_out}
        if "max_tokens" in fitted and self._limit_field != "max_tokens":
            fitted[self._limit_field] = fitted.pop("max_tokens")
        if "top_logprobs" in fitted:
            fitted["top_logprobs"] = min(fitted["top_logprobs"], self._top_logprobs)
            if not self._top_logprobs:
                del fitted["logprobs"], fitted["top_logprobs"]
        return fitted

    def learn(self, sent: Mapping[str, Any], said: str, param: str | None) -> bool:
        """What a refusal tells, if it is about one of the fields that can be left out or replaced.

        Args:
            sent: the body that was refused.
            said: the server's words.
            param: the field that it names; None if it names none.

        Returns:
            Whether it is: the same request may pass now.
        """
        if "top_logprobs" in sent and (most := _MOST_LOGPROBS.search(said)) is not None:
            fewer = int(next(group for group in most.groups() if group is not None))
            if fewer < sent["top_logprobs"]:
                self._top_logprobs = fewer
                self.note("top_logprobs", f"it gives at most {fewer} of the {sent['top_logprobs']} asked for")
                return True
        if not _REFUSED.search(said):
            return False
        if "max_tokens" in sent and "max_completion_tokens" in said:
            self._limit_field = "max_completion_tokens"
            self.note("max_tokens", "max_completion_tokens is sent instead")
            return True
        if "logprobs" in sent and (param in ("logprobs", "top_logprobs") or "logprobs" in said):
            self._top_logprobs = 0
            self.note("logprobs", "probabilities of the verdicts are not known")
            return True
        for name, meaning in _OPTIONAL.items():
            if name in sent and (param == name or (param is None and re.search(rf"\b{name}\b", said))):
                self._left_out.add(name)
                self.note(name, meaning)
                return True
        return False

    def note(self, what: str, meaning: str) -> None:
        """Say once that the server lacks something."""
        if what not in self._said:
            self._said.add(what)
            logger.warning("%s does not take or give %s: %s", self._name, what, meaning)
