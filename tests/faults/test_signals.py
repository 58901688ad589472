"""The coordinator gets a signal in the middle of an upload, of a change or of averaging: it ends in order, or opens its log anew.

All of them take minutes, so only `make faults` plays them.
"""

from pathlib import Path

import pytest
from drill.fleet import Fault
from drill.pairs import Embedded, StorePair
from drill.trial import ALL, SAMPLE_ONLY, Undisturbed, drill

pytestmark = [
    pytest.mark.faults,
    pytest.mark.slow,
    pytest.mark.timeout(300),
    pytest.mark.skipif(not ALL, reason=SAMPLE_ONLY),
]
POINTS = (
    "uploads.put.before",
    "store.apply.UpdateArrived.after",
    "averaging.write_next.before",
    "files.publish.before",
)


@pytest.mark.parametrize("pair", [Embedded.name], indirect=True, scope="session")
@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT", "SIGHUP"])
@pytest.mark.parametrize("point", POINTS)
def test_a_coordinator_that_gets_a_signal_there_ends_in_order_and_the_run_goes_on(
    tmp_path: Path, pair: StorePair, undisturbed: Undisturbed, point: str, name: str
) -> None:
    scenario, passes = undisturbed.passing(point)
    number = passes[-1]
    fault = Fault.signal_at(point, number, name, code=0)
    ending = drill(tmp_path / "drill", pair, scenario, fault, undisturbed.of(scenario).digest)
    assert ending.passes[point] >= number, "the coordinator never came there"
    assert ending.fired == (name != "SIGHUP")
