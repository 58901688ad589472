"""The numbers that leave this machine."""

from collections.abc import Mapping

from pluralllm.client.disclosure.policy import Policy


def permitted_metrics(policy: Policy, metrics: Mapping[str, float]) -> dict[str, float]:
    """Returns the metrics that the policy allows to leave this machine."""
    return {name: value for name, value in metrics.items() if name in policy.allowed_metrics}
