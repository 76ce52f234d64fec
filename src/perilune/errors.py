"""Every error Perilune raises, in one tree.

PeriluneError
├── ConfigError                a setting, flag, file or environment variable is wrong
│   └── HomeLocked             another process owns this HOME
├── StoreError                 durable storage failed
│   ├── StorageFull            no space left: nothing was acknowledged
│   └── JournalCorrupt         a journal or database does not read back as it was written
├── InputError                 the caller's request is wrong (HTTP 400)
│   ├── NotFound               the named thing does not exist (HTTP 404)
│   └── UnsupportedInput       well-formed, but not something this build can do
├── CheckpointError            a model folder is not what its index or config says
├── TokenizerError             a tokenizer file cannot be used
├── BackendError               a model endpoint failed (HTTP 502)
│   ├── BackendUnreachable     refused, timed out, name not found
│   │   └── BackendDrained     the operator has taken every endpoint out
│   ├── BackendAuth            the endpoint refused our key
│   ├── BackendRateLimited     429 or overload; carries retry_after_s
│   │   └── BackendOutOfQuota  the endpoint's account has nothing left: no waiting mends it
│   ├── BackendRefused         the endpoint called the request bad (4xx); carries its message
│   │   └── BackendFiltered    its content filter refused the request
│   ├── BackendProtocol        the answer is not OpenAI-shaped
│   └── BackendInterrupted     the stream ended before it was complete
├── EngineError                the engine process failed
│   ├── EngineGone             the process ended or its socket closed
│   ├── ContextTooLong         prompt plus output exceed the model's context
│   └── NonFiniteLogits        the model computed NaN or infinity
├── AccountError               keys, money and allowance
│   ├── InvalidKey             missing, unknown, expired or revoked key (HTTP 401)
│   ├── Forbidden              the key lacks the scope (HTTP 403)
│   ├── InsufficientBalance    the balance does not cover the call (HTTP 429)
│   └── LimitReached           a rate limit or key budget (HTTP 429); carries retry_after_s
├── SearchFailed               a search provider failed: the model is told, nobody pays
├── SandboxError               a command could not be isolated
└── SwarmError
    ├── GoalRefused            the connected model cannot do this goal; nothing was spent
    ├── RepositoryError        not a repository we can work on
    ├── MergeConflict          a patch does not apply to the tip; carries the paths
    ├── BudgetExhausted        the session's budget is used up; resumable with a larger one
    └── SessionNotFound        no such session in this HOME

Tool failures are *values* given back to the model (agent/tools), never exceptions.
"""

from __future__ import annotations

LONGEST_FIELD = 300


class PeriluneError(Exception):
    """Base of all errors. `field` names what is wrong, `mend` says what to do about it."""

    code = "internal_error"
    http_status = 500
    exit_code = 1

    def __init__(self, message: str, *, field: str | None = None, mend: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.field = field
        self.mend = mend

    def __str__(self) -> str:
        text = f"{shown(self.field)}: {self.message}" if self.field else self.message
        return f"{text} ({self.mend})" if self.mend else text


def shown(field: str) -> str:
    """A name as one short line. It may be a stranger's, such as a tensor's: it must not fill pages."""
    name = field if field.isprintable() else ascii(field)
    return name if len(name) <= LONGEST_FIELD else f"{name[: LONGEST_FIELD - 3]}..."


class ConfigError(PeriluneError):
    code = "config_error"
    exit_code = 2


class HomeLocked(ConfigError):
    code = "home_locked"
    exit_code = 3


class StoreError(PeriluneError):
    code = "store_error"
    exit_code = 4


class StorageFull(StoreError):
    code = "storage_full"
    http_status = 507


class JournalCorrupt(StoreError):
    code = "journal_corrupt"


class InputError(PeriluneError):
    code = "invalid_request_error"
    http_status = 400
    exit_code = 2


class NotFound(InputError):
    code = "resource_not_found_error"
    http_status = 404


class UnsupportedInput(InputError):
    code = "unsupported_input"


class CheckpointError(PeriluneError):
    code = "checkpoint_error"
    exit_code = 5


class TokenizerError(PeriluneError):
    code = "tokenizer_error"
    exit_code = 5


class BackendError(PeriluneError):
    code = "backend_error"
    http_status = 502
    exit_code = 6


class BackendUnreachable(BackendError):
    code = "backend_unreachable"
    http_status = 503


class BackendDrained(BackendUnreachable):
    code = "backend_drained"


class BackendAuth(BackendError):
    code = "backend_auth"


class BackendRateLimited(BackendError):
    code = "engine_overloaded_error"
    http_status = 429

    def __init__(
        self,
        message: str,
        *,
        retry_after_s: float | None = None,
        field: str | None = None,
        mend: str | None = None,
    ) -> None:
        super().__init__(message, field=field, mend=mend)
        self.retry_after_s = retry_after_s


class BackendOutOfQuota(BackendRateLimited):
    code = "exceeded_current_quota_error"


class BackendRefused(BackendError):
    code = "invalid_request_error"
    http_status = 400


class BackendFiltered(BackendRefused):
    code = "content_filter"


class BackendProtocol(BackendError):
    code = "backend_protocol"


class BackendInterrupted(BackendError):
    code = "backend_interrupted"


class EngineError(PeriluneError):
    code = "engine_error"
    exit_code = 7


class EngineGone(EngineError):
    code = "engine_gone"
    http_status = 503


class ContextTooLong(EngineError):
    code = "context_length_exceeded"
    http_status = 400


class NonFiniteLogits(EngineError):
    code = "non_finite_logits"


class AccountError(PeriluneError):
    """`passing`: what is missing is only held by calls under way, so it may be there when they have ended."""

    code = "account_error"
    http_status = 403

    def __init__(
        self, message: str, *, passing: bool = False, field: str | None = None, mend: str | None = None
    ) -> None:
        super().__init__(message, field=field, mend=mend)
        self.passing = passing


class InvalidKey(AccountError):
    code = "invalid_authentication_error"
    http_status = 401


class Forbidden(AccountError):
    code = "permission_denied_error"
    http_status = 403


class InsufficientBalance(AccountError):
    code = "exceeded_current_quota_error"
    http_status = 429


class LimitReached(AccountError):
    code = "rate_limit_reached_error"
    http_status = 429

    def __init__(
        self,
        message: str,
        *,
        passing: bool = False,
        retry_after_s: float | None = None,
        field: str | None = None,
        mend: str | None = None,
    ) -> None:
        super().__init__(message, passing=passing, field=field, mend=mend)
        self.retry_after_s = retry_after_s


class SearchFailed(PeriluneError):
    code = "search_failed"
    http_status = 502
    exit_code = 6


class SandboxError(PeriluneError):
    code = "sandbox_error"
    exit_code = 8


class SwarmError(PeriluneError):
    code = "swarm_error"
    exit_code = 9


class GoalRefused(SwarmError):
    code = "goal_refused"
    exit_code = 2


class RepositoryError(SwarmError):
    code = "repository_error"
    exit_code = 2


class MergeConflict(SwarmError):
    code = "merge_conflict"

    def __init__(self, message: str, *, paths: tuple[str, ...] = ()) -> None:
        super().__init__(message)
        self.paths = paths


class BudgetExhausted(SwarmError):
    code = "budget_exhausted"
    exit_code = 10


class SessionNotFound(SwarmError):
    code = "session_not_found"
    http_status = 404
    exit_code = 2
