"""What can go wrong, and whose fault it is.

Every error has an owner, `fault`, and a `code` that programs can match. The owner alone decides the HTTP status class,
whether the pool retries, and whether a training sample is scored:

    client   4xx, never retried                  policy   502, scored 0
    worker   502-504, retried in the pool only   grader   sample dropped and counted
    us       500 (503 when the store refuses work)

Running out of budget is not an error: the run says what stopped it.
"""

from __future__ import annotations

import copyreg
from typing import Any, ClassVar, Literal, TypeAlias

__all__ = [
    "ConfigError",
    "Fault",
    "FuguError",
    "GradeError",
    "ModelError",
    "PlanError",
    "RequestError",
    "StoreError",
    "WorkerError",
]

Fault: TypeAlias = Literal["client", "policy", "worker", "grader", "us"]


class FuguError(Exception):
    """Base of every error we raise on purpose."""

    fault: ClassVar[Fault] = "us"
    default_code: ClassVar[str] = "internal_error"

    def __init__(self, message: str, *, code: str | None = None) -> None:
        super().__init__(message)
        self.code = code or self.default_code

    @property
    def message(self) -> str:
        return str(self)

    def __reduce__(self) -> tuple[Any, ...]:
        """Errors cross processes whole, notes included; exceptions are by default made anew without their keywords."""
        return copyreg.__newobj__, (type(self), *self.args), self.__dict__  # type: ignore[attr-defined]  # no stub


class RequestError(FuguError):
    """The client's request is bad: 4xx with `status`, naming the field in `param`."""

    fault = "client"
    default_code = "invalid_request"

    def __init__(self, message: str, *, code: str | None = None, status: int = 400, param: str | None = None) -> None:
        super().__init__(message, code=code)
        self.status = status
        self.param = param


class ConfigError(FuguError):
    """A file or setting that a person wrote is wrong: names key, value and choices."""

    default_code = "config_error"


class ModelError(FuguError):
    """A trained artefact (head, encoder) is missing, damaged, or made for something else."""

    default_code = "model_error"


class PlanError(FuguError):
    """A policy decided something that cannot be done."""

    fault = "policy"
    default_code = "bad_plan"


class GradeError(FuguError):
    """A grader could not reach a verdict; the sample is dropped, never scored as wrong."""

    fault = "grader"
    default_code = "grade_error"


class StoreError(FuguError):
    """The record cannot be written or read; work is refused rather than done off the record."""

    default_code = "store_unavailable"


WorkerCode: TypeAlias = Literal[
    "rate_limited",
    "overloaded",
    "server_error",
    "connect_failed",
    "timeout_connect",
    "timeout_first_token",
    "timeout_idle",
    "timeout_total",
    "truncated",
    "malformed",
    "too_large",
    "empty",
    "context_overflow",
    "rejected",
    "auth",
    "content_filter",
    "unavailable",
]


class WorkerError(FuguError):
    """A worker failed. `code` says how; `retry_after_s` is what the provider asked for, None when it did not."""

    fault = "worker"
    default_code = "server_error"
    code: WorkerCode

    def __init__(
        self,
        message: str,
        *,
        worker: str,
        code: WorkerCode = "server_error",
        retry_after_s: float | None = None,
        partial: bool = False,
    ) -> None:
        super().__init__(message, code=code)
        self.worker = worker
        self.retry_after_s = retry_after_s
        self.partial = partial
        """Tokens of the answer had already been passed on, so another worker cannot take over unseen."""
