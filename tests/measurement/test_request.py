"""Settings of a measurement, and the sources that it fetches."""

from pathlib import Path
from typing import Any

import pytest

from lowrank_study.config.run import composed
from lowrank_study.errors import InputError
from lowrank_study.measurement import request as request_module
from lowrank_study.measurement.request import read_request
from lowrank_study.spec import HubRepo


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({}, ["nothing was given", "before=PATH", "adapter=PATH"]),
        ({"before": "a"}, ["before=a", "after=PATH"]),
        ({"before": "a", "after": "b", "adapter": "c"}, ["adapter=c"]),
        ({"adapter": "a", "method": "qr"}, ["method='qr'", "gram, svd, certified"]),
        ({"adapter": "a", "directions": 0}, ["directions=0", "at least 1"]),
        ({"adapter": "a", "intruder_epsilon": 1.5}, ["1.5", "(0, 1]"]),
        ({"adapter": "a", "fit_first": 9, "fit_last": 9}, ["fit_first=9", "smaller"]),
        ({"adapter": "a", "compare_with_base": "often"}, ["'often'", "true or false"]),
        ({"adapter": "a", "out": __file__}, ["is a file"]),
    ],
)
def test_invalid_settings_are_refused_by_name(changes: dict[str, Any], words: list[str]) -> None:
    with pytest.raises(InputError) as refused:
        read_request(composed("measure_spectra") | changes)
    for word in words:
        assert word in str(refused.value)
    assert "\n" not in str(refused.value)


def test_hub_ids_and_revisions_are_fetched(
    base: Path, tuned: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[object] = []

    def fetched(asset: object) -> Path:
        asked.append(asset)
        return base

    monkeypatch.setattr(request_module, "fetch", fetched)
    request = read_request(
        composed("measure_spectra") | {"before": "someone/model@v1.0", "after": str(tuned)}
    )
    found = request_module.measure_request(
        request, on_progress=lambda step: None, on_left_out=print
    )
    assert asked == [HubRepo(repo_id="someone/model", subset=None, revision="v1.0")]
    assert len(found.matrices) == 16
    assert request.out == Path("results/measured") / f"{tuned.parent.name}-{tuned.name}"
