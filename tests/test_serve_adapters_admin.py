"""Operators add, change and remove adapters over HTTP while the endpoint runs."""

import asyncio
import json

from support.asgi import KEYS_TEXT, USER, Answered, Scripted, app_around, ask, exchanged


def test_an_operator_adds_changes_and_removes_them() -> None:
    app = app_around(Scripted().generate, keys_text=KEYS_TEXT)

    def admin(method: str, name: str, key: str = "key-ops", **body: str) -> Answered:
        return asyncio.run(exchanged(app, method, f"/admin/models/{name}", json.dumps(body).encode(), key=key))

    def got(path: str) -> Answered:
        return asyncio.run(exchanged(app, "GET", path, b"", key="key-all"))

    assert admin("POST", "games", "key-all", adapter="a").status == 403
    added = admin("POST", "games", adapter="models/games")
    assert (added.status, added.json["policy"]) == (200, "models/games")
    assert "games" in [row["id"] for row in got("/v1/models").json["data"]]
    assert ask(app, "key-all", model="games", messages=[USER]).json["model"] == "games"
    assert got("/readyz").status == 200, "its replicas are those of the base"
    refused = admin("POST", "games", adapter="nowhere").json["error"]
    assert (refused["code"], refused["param"]) == ("adapter_refused", "adapter")
    for wrong in ({}, {"policy": "a", "adapter": "b"}, {"adapter": ""}):
        assert admin("POST", "games", **wrong).json["error"]["message"].startswith('the body is {"policy"')
    assert admin("DELETE", "demo").json["error"]["code"] == "adapter_refused"
    assert admin("DELETE", "games", "key-all").status == 403
    assert admin("DELETE", "games").json == {"model": "games", "deleted": True}
    assert admin("DELETE", "games").status == 404
    assert ask(app, "key-all", model="games", messages=[USER]).status == 404
