"""The cause of an unanswered call is looked up once in a while, not at each call."""

from typing import cast

from pluralllm.client.joining.cached_diagnosis import CachedDiagnosis
from pluralllm.client.joining.diagnosis import Cause
from pluralllm.common.errors.tree import Unreachable
from pluralllm.common.trust.identity import Identity

MEMBER = cast(Identity, object())


def test_a_cause_is_looked_up_again_when_it_is_too_old() -> None:
    now_s, lookups = [0.0], []

    def diagnose(identity: Identity) -> Cause:
        lookups.append(identity)
        return Cause(Unreachable(address="a", problem=str(len(lookups))), final=False)

    diagnosis = CachedDiagnosis(30.0, diagnose, lambda: now_s[0])
    causes = []
    for time_s in (0.0, 29.0, 30.0, 59.0):
        now_s[0] = time_s
        causes.append(diagnosis.cause(MEMBER))
    assert causes[0] is causes[1]
    assert causes[2] is causes[3]
    assert causes[0] != causes[2]
    assert lookups == [MEMBER, MEMBER]


def test_no_cause_is_an_answer_that_is_kept_as_well() -> None:
    lookups: list[Identity] = []
    diagnosis = CachedDiagnosis(30.0, lookups.append, lambda: 0.0)
    assert [diagnosis.cause(MEMBER), diagnosis.cause(MEMBER)] == [None, None]
    assert lookups == [MEMBER]
