"""Constants of the ports that depend on settings."""

from annotated_types import Le

from pluralllm.server.process.config import ServerConfig
from pluralllm.server.rpc.serving import CONNECTION_GRACE_MS


def test_a_connection_of_age_outlives_the_longest_poll_that_may_be_configured() -> None:
    [longest_hold_s] = [
        bound.le for bound in ServerConfig.model_fields["poll_hold_s"].metadata if isinstance(bound, Le)
    ]
    assert 2 * 1000 * longest_hold_s < CONNECTION_GRACE_MS  # type: ignore[operator]
