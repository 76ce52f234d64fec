"""What goes wrong at an OpenAI-compatible endpoint: from statuses and error bodies to errors."""

from __future__ import annotations

from typing import Any

import msgspec

from perilune.errors import (
    BackendAuth,
    BackendError,
    BackendFiltered,
    BackendOutOfQuota,
    BackendRateLimited,
    BackendRefused,
    BackendUnreachable,
)

DETAIL_CHARS = 300
OVERLOADED = "The engine is currently overloaded, please try again later"
HIGH_RISK = "The request was rejected because it was considered high risk"


def is_out_of_quota(body: bytes) -> bool:
    """A 429 that no waiting mends."""
    return b"quota_error" in body or b"insufficient_quota" in body


def decode_error(status: int, body: bytes, retry_after_s: float | None = None) -> BackendError:
    """What an HTTP status of 400 or more means, with the endpoint's own words."""
    detail = _detail(body)
    if status in (401, 403):
        return BackendAuth(
            f"the model endpoint refused the key: {detail}", field="model_key", mend="correct it"
        )
    if status == 429:
        if is_out_of_quota(body):
            return BackendOutOfQuota(
                f"the model endpoint's account is used up: {detail}", mend="top up the endpoint's account"
            )
        return BackendRateLimited(
            f"{OVERLOADED}: the model endpoint is at its limit: {detail}",
            retry_after_s=retry_after_s,
            mend="try later",
        )
    if status == 400 and b"content_filter" in body:
        return BackendFiltered(f"{HIGH_RISK}: {detail}", mend="change what is asked")
    if 400 <= status < 500 and status != 408:
        return BackendRefused(f"the model endpoint refused the request ({status}): {detail}")
    if status in (408, 502, 503, 504):
        return BackendUnreachable(
            f"the model endpoint is not available ({status}): {detail}", mend="try later"
        )
    return BackendError(
        f"the model endpoint failed ({status}): {detail}", mend="try again, or look into the endpoint's log"
    )


def reported(error: Any) -> BackendError:
    """An error object inside a 200 answer. It carries its own status only in some endpoints' `code`."""
    message = error.get("message") if isinstance(error, dict) else error
    code = error.get("code") if isinstance(error, dict) else None
    if isinstance(code, int) and 400 <= code < 600:
        return decode_error(code, msgspec.json.encode({"error": {"message": str(message)}}))
    return BackendError(f"the model endpoint failed: {str(message)[:DETAIL_CHARS]}")


def _detail(body: bytes) -> str:
    """The message of an error body, whatever its shape."""
    try:
        value = msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return clip(body)
    error = value.get("error", value) if isinstance(value, dict) else value
    message = error.get("message") or error.get("detail") if isinstance(error, dict) else error
    return str(message)[:DETAIL_CHARS] if message else clip(body)


def clip(data: bytes) -> str:
    text = data[:DETAIL_CHARS].decode(errors="replace")
    return " ".join(text.split()) or "no explanation"
