"""Live records on Ray Serve: the predictor rates what was drawn, and an endpoint that is stopped has written them."""

from pathlib import Path

import pytest
from support.endpoint import running
from support.live import records
from support.replicas import MODEL

from data.attributes import shipped
from serve.live_store import LiveSettings
from serve.locate import Located

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.filterwarnings("ignore")]


@pytest.mark.case("live records: drawn and rated answers, written when the endpoint stops")
def test_what_was_drawn_is_written_when_the_endpoint_stops(
    ray_cluster: object, tiny_policy: str, tiny_predictor: str, tmp_path: Path
) -> None:
    store = tmp_path / "store"
    settings = {"live": LiveSettings(store=str(store), share=1)}
    with running([Located(tiny_policy, MODEL)], predictor=tiny_predictor, **settings) as endpoint:
        status, scored = endpoint.chat(score=True, attributes={"humor": 4}, max_tokens=8)
        assert status == 200
        assert endpoint.chat(attributes={"humor": 0}, max_tokens=8)[0] == 200
        assert len(list(endpoint.stream(max_tokens=8))) > 1
        assert records(store) == [], "a file for each minute"
    found = records(store)
    assert [record.requested for record in found] == [{"humor": 4}, {"humor": 0}, {}]
    assert found[0].measured == scored["steering"]["measured"]
    assert all(record.sampled and set(record.measured) == set(shipped("lab").names) for record in found)
