"""The reason that an error of another library gives, as a part of a message of ours."""

import re


def reason(error: BaseException) -> str:
    """The reason in one line, which begins with the name of the error's type where the message is a single word."""
    message = str(error).strip()
    if "contains custom code" in message:
        return "its code comes with the checkpoint; read it, and set model.trust_remote_code=true if you trust it"
    if isinstance(error, KeyError):
        message = message.strip("'\"")
    # The checks of a config's class come as one error within another, each on a line of its own.
    line = next(iter(re.split(r"\w+Error: ", message)[-1].splitlines()), "").partition(" Checkout 'http")[0]
    return line if " " in line else f"{type(error).__name__} {line}".strip()
