"""Whether the model hub can be reached, tested by a single request with short timeouts.

``huggingface_hub`` by itself asks for every file of a model, each with five retries and growing pauses between them.
"""

from functools import cache

from huggingface_hub import constants, get_session

_CONNECT_TIMEOUT = 3.0
"""Seconds to wait for a connection where packets vanish; an unknown host or a closed port is reported at once."""


@cache
def why_offline() -> str | None:
    """The reason why the hub cannot be reached; None where it answers, with whatever status.

    The request is made as huggingface_hub makes its own: to HF_ENDPOINT, through the proxies of the environment, by
    the client of ``huggingface_hub.set_client_factory``. HF_HUB_OFFLINE counts as a reason.
    """
    if constants.is_offline_mode():
        return "HF_HUB_OFFLINE is set"
    answer = float(constants.HF_HUB_ETAG_TIMEOUT)
    try:
        get_session().head(
            constants.ENDPOINT, timeout=(_CONNECT_TIMEOUT, answer, answer, answer), follow_redirects=False
        )
    except Exception as error:  # Of httpx or httpx2, whichever this version of huggingface_hub is built on.
        return f"{constants.ENDPOINT} cannot be reached ({str(error).strip() or type(error).__name__})"
    return None
