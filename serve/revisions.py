"""Which checkpoint each model was last swapped to: what an ingress or a replica that starts anew must know.

Kept by the cluster's head, beside what Ray Serve knows of the application and as long as that. Knows no model.
"""

import json
from collections.abc import Iterable

from ray.experimental.internal_kv import _internal_kv_del, _internal_kv_get, _internal_kv_put

from serve.request import Revision

NAMESPACE = b"steerlm-revisions"


def wanted(application: str, model: str, configured: str) -> Revision:
    """The last swap's revision; the configured policy's if there was none, or if it was another's when they swapped."""
    kept = _internal_kv_get(_key(application, model), namespace=NAMESPACE)
    if kept is not None:
        fields = json.loads(kept)
        if fields["configured"] == configured:
            return Revision(fields["policy"], fields["number"])
    return Revision(configured, 0)


def keep(application: str, model: str, configured: str, revision: Revision) -> None:
    fields = {"configured": configured, "policy": revision.policy, "number": revision.number}
    _internal_kv_put(_key(application, model), json.dumps(fields).encode(), overwrite=True, namespace=NAMESPACE)


def forget(application: str, models: Iterable[str]) -> None:
    """The application begins, or is gone."""
    for model in models:
        _internal_kv_del(_key(application, model), namespace=NAMESPACE)


def _key(application: str, model: str) -> bytes:
    return f"{application}/{model}".encode()
