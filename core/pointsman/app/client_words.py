"""Why a control plane could not be asked, and what to do about it, in one sentence."""

from __future__ import annotations

import errno
import ssl
from typing import Final

import aiohttp

_ALERTS: Final = ("CERTIFICATE_REQUIRED", "UNKNOWN_CA", "BAD_CERTIFICATE", "CERTIFICATE_EXPIRED", "CERTIFICATE_UNKNOWN")
"""By which a server ends a handshake because of our certificate; OpenSSL has them in what it raises."""

_NO_TLS: Final = frozenset({"WRONG_VERSION_NUMBER", "RECORD_LAYER_FAILURE", "HTTP_REQUEST"})
"""What OpenSSL calls an answer in plain text."""

_NO_WAY: Final = frozenset({errno.EHOSTUNREACH, errno.ENETUNREACH, errno.ETIMEDOUT})


def no_answer(url: str, error: BaseException, timeout_s: float) -> str:
    """What to tell a person who asked for `url` and got `error` in place of an answer."""
    causes = _causes(error)
    for cause in causes:
        found = _verification(url, cause) or _handshake(url, cause) or _http(url, cause, timeout_s)
        if found:
            return found
    return (
        next(filter(None, (_system(url, cause) for cause in causes)), "")
        or f"no answer from the control plane at {url}: {str(error) or type(error).__name__}"
    )


def _verification(url: str, error: BaseException) -> str:
    if not isinstance(error, ssl.SSLCertVerificationError) or isinstance(error, aiohttp.ClientError):
        return ""  # aiohttp's own of that kind know nothing; what they hold comes later
    if "mismatch" in error.verify_message:
        return (
            f"the certificate of {url} is for other names: ask for it by one of them, or give it a certificate for "
            "this one (pointsman certs make --host HOST)"
        )
    return f"the certificate of {url} is not trusted ({error.verify_message}): say who signed it with --admin-ca"


def _handshake(url: str, error: BaseException) -> str:
    if not isinstance(error, ssl.SSLError) or isinstance(error, aiohttp.ClientError):
        return ""
    reason = error.reason or str(error)
    words = reason.lower().replace("_", " ")
    if any(alert in reason for alert in _ALERTS):
        return f"{url} refuses the client certificate ({words}): --client-cert must be signed by its --admin-client-ca"
    if reason in _NO_TLS:
        return f"{url} does not speak TLS: say http:// in place of https://"
    return f"TLS with {url} failed: {words}"


def _http(url: str, error: BaseException, timeout_s: float) -> str:
    if isinstance(error, aiohttp.InvalidURL):
        return f"--admin {url!r} is no address: say http://HOST:PORT or https://HOST:PORT"
    if isinstance(error, aiohttp.ClientConnectorDNSError):
        return f"no control plane at {url}: there is no host of that name"
    if isinstance(error, aiohttp.ServerDisconnectedError):
        # With TLS 1.3 a client learns only here that its certificate, or that it has none, ends the handshake.
        hint = "a --client-cert that its --admin-client-ca has signed" if url.startswith("https://") else "https://"
        return f"{url} ended the connection without an answer; does it want {hint}?"
    if isinstance(error, TimeoutError) and not error.errno:
        return f"the control plane at {url} did not answer within {timeout_s:g} s; its log may say why"
    return ""


def _system(url: str, error: BaseException) -> str:
    number = error.errno if isinstance(error, OSError) else None
    if number == errno.ECONNREFUSED:
        return (
            f"no control plane listens at {url}: start one with `pointsman up`, or say where it is with --admin URL "
            "or POINTSMAN_ADMIN"
        )
    if number in _NO_WAY:
        return f"no way to the control plane at {url} ({errno.errorcode[number or 0]}): is that its address?"
    if number == errno.ECONNRESET:
        return f"{url} broke the connection off without an answer"
    return ""


def _causes(error: BaseException) -> list[BaseException]:
    """The error and what led to it, also where aiohttp keeps it as an attribute."""
    found: list[BaseException] = []
    left: list[BaseException | None] = [error]
    while left:
        one = left.pop(0)
        if one is not None and one not in found:
            found.append(one)
            left += [one.__cause__, getattr(one, "os_error", None), getattr(one, "certificate_error", None)]
    return found
