from pluralllm.client.disclosure.outgoing import permitted_metrics
from pluralllm.client.disclosure.policy import Policy


def test_only_permitted_metrics_leave() -> None:
    policy = Policy(allowed_metrics=frozenset({"alignment_score"}))
    assert permitted_metrics(policy, {"loss": 1.0, "alignment_score": 0.5}) == {"alignment_score": 0.5}


def test_the_base_distance_leaves_only_if_the_partner_lets_it() -> None:
    metrics = {"loss": 1.0, "base_distance": 0.3}
    assert permitted_metrics(Policy(), metrics) == metrics
    assert permitted_metrics(Policy(allowed_metrics=frozenset({"loss"})), metrics) == {"loss": 1.0}
