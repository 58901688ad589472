"""The policy of a round that the quick tests of the round machine use."""

from pluralllm.common.words.spec import RoundPolicy

TWO_OF_THREE = RoundPolicy(
    min_clients=2,
    target_clients=3,
    gather_s=10,
    deadline_s=100,
    grace_after_quorum_s=20,
    evaluate_every=2,
    evaluation_deadline_s=50,
)
