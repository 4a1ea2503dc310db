"""Which checkpoint each model was last swapped to: what an ingress or a replica that starts anew must know.

Kept by the cluster's head, beside what Ray Serve knows of the application and as long as that. Knows no model.
"""

import json
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from ray.experimental.internal_kv import (
    _internal_kv_del,
    _internal_kv_get,
    _internal_kv_list,
    _internal_kv_put,
)

from data.errors import UserError
from serve.request import Revision

NAMESPACE, CLAIMS = b"steerlm-revisions", b"steerlm-swaps"


def wanted(application: str, model: str, configured: str) -> Revision:
    """The last swap's revision; the configured policy's if there was none, or if it was another's when they swapped."""
    while keys := _keys(application, model):
        kept = _internal_kv_get(keys[-1], namespace=NAMESPACE)
        if kept is None:  # a later swap has just replaced it
            continue
        fields = json.loads(kept)
        if fields["configured"] == configured:
            return Revision(fields["policy"], fields["number"])
        break
    return Revision(configured, 0)


def keep(application: str, model: str, configured: str, revision: Revision) -> None:
    """Two ingresses may keep at the same time: each revision has a key of its own, and the highest number counts."""
    fields = {"configured": configured, "policy": revision.policy, "number": revision.number}
    own = _prefix(application, model) + f"{revision.number:020d}".encode()
    _internal_kv_put(own, json.dumps(fields).encode(), overwrite=True, namespace=NAMESPACE)
    for older in _keys(application, model)[:-1]:
        _internal_kv_del(older, namespace=NAMESPACE)


def forget(application: str, models: Iterable[str]) -> None:
    """The application begins, or is gone."""
    for model in models:
        _internal_kv_del(_prefix(application, model), namespace=CLAIMS)
        for key in _keys(application, model):
            _internal_kv_del(key, namespace=NAMESPACE)


@contextmanager
def claimed(application: str, model: str, for_s: float) -> Iterator[None]:
    """No other process swaps the model meanwhile; a claim ends after `for_s` at the latest, also if its owner dies.

    Raises UserError if one does.
    """
    key, claim = _prefix(application, model), str(time.time() + for_s).encode()
    held = _internal_kv_get(key, namespace=CLAIMS)
    if held is not None and float(held) < time.time():
        _internal_kv_del(key, namespace=CLAIMS)
    if _internal_kv_put(key, claim, overwrite=False, namespace=CLAIMS):
        raise UserError(f"model {model} is being swapped already: wait until that is done")
    try:
        yield
    finally:
        if _internal_kv_get(key, namespace=CLAIMS) == claim:
            _internal_kv_del(key, namespace=CLAIMS)


def _keys(application: str, model: str) -> list[bytes]:
    """Of its revisions, the latest last."""
    return sorted(_internal_kv_list(_prefix(application, model), namespace=NAMESPACE))


def _prefix(application: str, model: str) -> bytes:
    return f"{application}/{model}/".encode()
