"""How the engine says no: an error in the shape OpenAI clients read, and the exception that carries it."""

from __future__ import annotations

from typing import Any


class Refusal(Exception):
    """A request that gets an error answer. The message names field, value and remedy, never picture content."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        kind: str = "invalid_request_error",
        retry_after_seconds: int | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.param = param
        self.code = code
        self.kind = kind
        self.retry_after_seconds = retry_after_seconds

    def body(self) -> dict[str, Any]:
        return {"error": {"message": self.message, "type": self.kind, "param": self.param, "code": self.code}}

    def headers(self) -> dict[str, str]:
        return {} if self.retry_after_seconds is None else {"retry-after": str(self.retry_after_seconds)}


class Unservable(Exception):
    """A model or adapter this process must not serve; `reason` is CamelCase, the message names the remedy.

    Starting again cannot help, so the process ends with exit code 65.
    """

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason
        self.message = message
