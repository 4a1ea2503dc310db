"""What the endpoint says of the policy that it serves. Knows no benchmark."""

import json
import urllib.error
import urllib.parse
import urllib.request
from dataclasses import dataclass
from typing import Any

from data.attributes import AttributeSchema
from data.errors import UserError
from data.printable import printable
from jobs.benchmarking.settings import BenchmarkEndpoint
from jobs.runner.api_key import api_key

TIMEOUT_S = 30.0


@dataclass(frozen=True)
class ServedModel:
    """A policy behind an endpoint."""

    name: str
    max_tokens: int
    """Of prompt and answer together."""


def bearer(settings: BenchmarkEndpoint) -> str:
    """The endpoint's key, "none" if none is needed: clients want one. Raises UserError if it is missing."""
    return api_key(settings, "benchmark.endpoint", "the endpoint's") or "none"


def served_model(settings: BenchmarkEndpoint, schema: AttributeSchema) -> ServedModel:
    """The policy that is to be tested; raises UserError if no endpoint serves one with the run's attributes."""
    found = _attributes(settings)
    if found.get("fingerprint") != schema.fingerprint:
        raise UserError(
            f"{settings.base_url} serves {printable(str(found.get('model')), 60)!r} with the attribute schema "
            f"{printable(str(found.get('schema')), 60)!r}, and the run has {schema.name!r} "
            f"({', '.join(schema.names)}); serve the run's own policy, or name it in benchmark.endpoint.model"
        )
    return ServedModel(str(found["model"]), int(found["context"]))


def _attributes(settings: BenchmarkEndpoint) -> dict[str, Any]:
    """The answer of GET /v1/attributes."""
    query = "?" + urllib.parse.urlencode({"model": settings.model}) if settings.model else ""
    url, start = settings.base_url.rstrip("/") + "/attributes" + query, "`python -m serve policy=FOLDER_OF_THE_RUN`"
    request = urllib.request.Request(url, headers={"Authorization": f"Bearer {bearer(settings)}"})
    try:
        with urllib.request.urlopen(request, timeout=TIMEOUT_S) as answer:
            found = json.load(answer)
    except urllib.error.HTTPError as error:
        with error:
            detail = printable(error.read(300).decode(errors="replace"), 200)
        raise UserError(
            f"{url} answers {error.code} ({detail}); {start} serves the policy; benchmark.endpoint has the settings "
            "base_url, model and key_variable"
        ) from None
    except OSError as error:
        reason = printable(str(getattr(error, "reason", error)), 150)
        raise UserError(
            f"no endpoint answers at {settings.base_url} ({reason}); start it with {start}, or set "
            "benchmark.endpoint.base_url to one that runs"
        ) from None
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise UserError(f"{url} answers with no JSON object; set benchmark.endpoint.base_url to {start}'s, with /v1")
    return found
