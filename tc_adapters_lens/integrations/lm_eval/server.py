"""An OpenAI-compatible server: whether it answers, and what it serves."""

from __future__ import annotations

import json
import os
from http.client import HTTPException
from urllib.error import HTTPError
from urllib.request import Request, urlopen

from tc_adapters_lens.errors import ConfigError, did_you_mean

__all__ = ["completions_url", "served_model"]

_PATIENCE = 20.0  # seconds


def completions_url(server: str) -> str:
    """Where completions are asked for: http://localhost:8000/v1 -> http://localhost:8000/v1/completions.

    Raises:
        ConfigError: no http address.
    """
    if not server.startswith(("http://", "https://")):
        raise ConfigError(f"--server must be an address such as http://localhost:8000/v1. Got {server}.")
    return f"{server.rstrip('/').removesuffix('/completions')}/completions"


def served_model(server: str, name: str | None) -> str:
    """The name to ask for.

    Args:
        server: as in `completions_url`.
        name: what the user calls it; None: the one model that is served.
    Raises:
        ConfigError: the server cannot be reached, serves several models, or not this one.
    """
    url = f"{completions_url(server).removesuffix('/completions')}/models"
    headers = {"Authorization": f"Bearer {key}"} if (key := os.environ.get("OPENAI_API_KEY")) else {}
    try:
        with urlopen(Request(url, headers=headers), timeout=_PATIENCE) as answer:
            served = [str(model["id"]) for model in json.load(answer)["data"]]
    except HTTPError as error:
        error.close()
        raise ConfigError(f"--server must list its models at {url}. Got HTTP {error.code} {error.reason}.") from error
    except (OSError, HTTPException) as error:
        why = str(getattr(error, "reason", error)) or type(error).__name__
        raise ConfigError(f"--server must answer. Got {why} from {url}. Start it, or mend the address.") from error
    except (ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"--server must be an OpenAI-compatible server. Got something else at {url}.") from error
    if name is None and len(served) == 1:
        return served[0]
    if name not in served:
        got = "none" if name is None else f"'{name}'"
        hint = "" if name is None else did_you_mean(name, served)
        raise ConfigError(
            f"--served-model must be one that {server} serves: {', '.join(served) or 'none'}. Got {got}.{hint}"
        )
    return name
