"""Which checkpoint each model was last swapped to: what an ingress or a replica that starts anew must know.

Kept by the cluster's head, beside what Ray Serve knows of the application and as long as that. Knows no model.
"""

import json
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

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
    last = _last(application, model)
    if last is not None and last["configured"] == configured:
        return Revision(last["policy"], last["number"])
    return Revision(configured, 0)


def wanted_adapters(application: str, policy: str, configured: Mapping[str, str]) -> dict[str, Revision]:
    """Adapter -> what it is to be answered from: those of the settings, and those that were added to the configured
    `policy` afterwards. One that was removed has no policy."""
    found = {name: wanted(application, name, folder) for name, folder in configured.items()}
    for name in set(kept(application)) - set(found):
        last = _last(application, name)
        if last is not None and last["adapter"] and last["configured"] == policy:
            found[name] = Revision(last["policy"], last["number"])
    return found


def kept(application: str) -> list[str]:
    """Names of all models that were swapped, and of adapters that came or went."""
    start = len(_prefix(application, "")) - 1
    keys = _internal_kv_list(f"{application}/", namespace=NAMESPACE)
    return sorted({key[start:].decode().partition("/")[0] for key in keys})


def keep(application: str, model: str, configured: str, revision: Revision, adapter: bool = False) -> None:
    """Two ingresses may keep at the same time: each revision has a key of its own, and the highest number counts.

    `configured`: the policy of the settings; of an adapter that they do not have, that of its base.
    """
    fields = {"configured": configured, "policy": revision.policy, "number": revision.number, "adapter": adapter}
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


def _last(application: str, model: str) -> dict[str, Any] | None:
    """What was kept at the last swap."""
    while keys := _keys(application, model):
        found = _internal_kv_get(keys[-1], namespace=NAMESPACE)
        if found is not None:  # else a later swap has just replaced it
            fields: dict[str, Any] = json.loads(found)
            return fields
    return None


def _keys(application: str, model: str) -> list[bytes]:
    """Of its revisions, the latest last."""
    return sorted(_internal_kv_list(_prefix(application, model), namespace=NAMESPACE))


def _prefix(application: str, model: str) -> bytes:
    return f"{application}/{model}/".encode()
