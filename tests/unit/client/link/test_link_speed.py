"""A link that is too slow is reported with its speed; one that is silent is not called slow."""

import pytest
from structlog.testing import capture_logs

from pluralllm.client.link.link_speed import MEASURED_S, STALLED_S, measured
from pluralllm.common.errors.tree import LinkTooSlow, PluralError, StorageFull, Unreachable
from pluralllm.common.weights.pieces import SLOWEST_LINK_BYTES_S

ADDRESS = "example.org:7443"
LOST = Unreachable(address=ADDRESS, problem="Deadline Exceeded")


class Transfer:
    """A transfer by a clock of its own."""

    def __init__(self, bytes_s: float, moves_s: float, silent_s: float = 0.0) -> None:
        self._bytes_s, self._moves_s, self._silent_s, self._now_s = bytes_s, moves_s, silent_s, 100.0

    def end_with(self, failure: PluralError | None) -> None:
        with measured(ADDRESS, "to", lambda: self._now_s) as speed:
            self._now_s += self._moves_s
            speed.moved(round(self._bytes_s * self._moves_s))
            self._now_s += self._silent_s
            if failure is not None:
                raise failure


def test_a_transfer_that_fails_on_a_slow_link_says_how_slow_it_is() -> None:
    with pytest.raises(LinkTooSlow) as raised:
        Transfer(SLOWEST_LINK_BYTES_S / 4, moves_s=60).end_with(LOST)
    assert str(raised.value).startswith(
        f"This link is too slow: 4.0 KiB/s to the coordinator at {ADDRESS}, needed are 16 KiB/s. Use a faster link"
    )
    assert raised.value.__cause__ is LOST


@pytest.mark.parametrize(
    "transfer",
    [
        Transfer(SLOWEST_LINK_BYTES_S, moves_s=60),
        Transfer(10, moves_s=MEASURED_S - 0.01),
        Transfer(10, moves_s=60, silent_s=STALLED_S),
    ],
    ids=["fast enough", "too short to measure", "silent"],
)
def test_a_transfer_that_fails_for_another_reason_keeps_its_error(transfer: Transfer) -> None:
    with pytest.raises(Unreachable):
        transfer.end_with(LOST)


@pytest.mark.parametrize(
    "transfer",
    [
        Transfer(SLOWEST_LINK_BYTES_S - 1, moves_s=60),
        Transfer(10, moves_s=MEASURED_S),
        Transfer(10, moves_s=60, silent_s=STALLED_S - 0.01),
    ],
    ids=["a little too slow", "just measured", "not quite silent"],
)
def test_a_transfer_that_fails_near_a_limit_is_called_too_slow(transfer: Transfer) -> None:
    with pytest.raises(LinkTooSlow):
        transfer.end_with(LOST)


def test_an_error_that_has_nothing_to_do_with_the_link_stays() -> None:
    with pytest.raises(StorageFull):
        Transfer(10, moves_s=60).end_with(StorageFull(what="the update"))


def test_a_slow_transfer_that_succeeds_is_logged() -> None:
    with capture_logs() as logs:
        Transfer(SLOWEST_LINK_BYTES_S / 2, moves_s=60).end_with(None)
        Transfer(SLOWEST_LINK_BYTES_S, moves_s=60).end_with(None)
    [line] = logs
    assert line["event"] == "link.too_slow"
    assert "8.0 KiB/s to the coordinator" in line["problem"]
