from pluralllm.common.words.ids import ClientId, RunId
from pluralllm.common.words.names import TaskName
from pluralllm.server.runs.leases import Leases

ANN, RUN, TASK = ClientId("ann"), RunId("r"), TaskName.parse("runs/r/rounds/1/tasks/train-ann")


def test_a_lease_ends_when_it_is_not_renewed() -> None:
    leases = Leases(duration_s=10)
    leases.grant(ANN, RUN, TASK, now_s=0)
    assert leases.expired(RUN, 9.9) == ()
    leases.renew(ANN, 9.9)
    assert leases.expired(RUN, 10) == ()
    assert leases.expired(RUN, 19.9) == (ANN,)


def test_a_client_holds_one_lease_whatever_the_number_of_runs() -> None:
    leases = Leases(duration_s=10)
    leases.grant(ANN, RUN, TASK, 0)
    leases.grant(ANN, RunId("other"), TaskName.parse("runs/other/rounds/1/tasks/train-ann"), 0)
    assert leases.held_in(RUN) == {}


def test_progress_is_kept_and_says_that_the_task_was_fetched() -> None:
    leases = Leases(duration_s=10)
    leases.grant(ANN, RUN, TASK, 0)
    leases.note(ANN, "training", 0.5)
    lease = leases.of(ANN)
    assert lease is not None
    assert (lease.fetched, lease.stage, lease.progress) == (True, "training", 0.5)


def test_a_released_lease_is_gone_and_renewing_it_brings_nothing_back() -> None:
    leases = Leases(duration_s=10)
    leases.grant(ANN, RUN, TASK, 0)
    leases.release(ANN)
    leases.renew(ANN, 1)
    assert leases.of(ANN) is None
