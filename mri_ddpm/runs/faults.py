"""What the Hub's client raises, told apart into what may pass and what a person has to change, in one sentence."""

import re
from collections.abc import Iterator

from huggingface_hub import get_token
from huggingface_hub.errors import HFValidationError, LocalTokenNotFoundError, OfflineModeIsEnabled

TRANSIENT_STATUSES = (408, 429, 500, 502, 503, 504)
NETWORK_LIBRARIES = ("requests", "urllib3", "httpx", "httpx2", "httpcore", "httpcore2", "hf_xet")


def chain(error: BaseException | None) -> Iterator[BaseException]:
    """The error, what it came from, and so on: uploads hide the cause in a RuntimeError."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def http_response(error: BaseException):
    """The answer of the Hub that led to the error, of whichever HTTP library; ``None`` when it gave none."""
    return next((e.response for e in chain(error) if getattr(e, "response", None) is not None), None)


def is_network_fault(error: BaseException) -> bool:
    """Whether the Hub was not reached, fell silent or broke off."""
    return any(
        isinstance(e, (ConnectionError, TimeoutError))
        or type(e).__module__.split(".")[0] in NETWORK_LIBRARIES
        for e in chain(error)
    )


def is_transient(error: BaseException) -> bool:
    """Whether the same call may succeed a little later."""
    if any(isinstance(e, OfflineModeIsEnabled) for e in chain(error)):
        return False
    response = http_response(error)
    return is_network_fault(error) if response is None else response.status_code in TRANSIENT_STATUSES


def retry_after_seconds(error: BaseException) -> float | None:
    """How long the Hub asks to wait, when it says so in seconds."""
    response = http_response(error)
    value = response.headers.get("Retry-After", "") if response is not None else ""
    return float(value) if value.isdigit() else None


def hub_sentence(error: BaseException, repo_id: str) -> str:
    """What went wrong and the way out, in one sentence without any token in it."""
    response = http_response(error)
    status = response.status_code if response is not None else None
    said = (response.headers.get("X-Error-Message") or "").rstrip(".") if response is not None else ""
    if any(isinstance(e, OfflineModeIsEnabled) for e in chain(error)):
        text = "HF_HUB_OFFLINE is set, so the Hub cannot be reached; unset it."
    elif any(isinstance(e, HFValidationError) for e in chain(error)):
        text = (
            f"{repo_id!r} is no name for a repository; take owner/name, of letters, digits, '-', '_' and '.'."
        )
    elif any(isinstance(e, LocalTokenNotFoundError) for e in chain(error)) or (
        status == 401 and not get_token()
    ):
        text = f"{repo_id} needs a Hub token and there is none; log in with 'hf auth login' or set HF_TOKEN."
    elif status == 401:
        text = f"the Hub refused the token for {repo_id} (401); log in again with 'hf auth login' or mend HF_TOKEN."
    elif status == 403:
        text = f"the token may not write to {repo_id} (403{said and ': ' + said}); take a name of your own or a token that may."
    elif status == 404:
        text = f"{repo_id} is not on the Hub, or the token cannot see it (404); check the name."
    elif status == 409:
        text = f"the name {repo_id} is taken (409); take another."
    elif status in TRANSIENT_STATUSES:
        text = f"the Hub cannot take {repo_id} now ({status}{said and ': ' + said}); try again later."
    elif status is not None:
        text = f"the Hub refused {repo_id} ({status}{said and ': ' + said})."
    elif is_network_fault(error):
        text = "the Hub was not reached, fell silent or broke off; try again later."
    else:
        text = f"{repo_id}: {' '.join(str(error).split())}"
    return without_tokens(text)


def without_tokens(text: str) -> str:
    """The text with the token in use, and whatever looks like one, blotted out."""
    token = get_token()
    if token:
        text = text.replace(token, "***")
    return re.sub(r"hf_[A-Za-z0-9]{8,}", "***", text)
