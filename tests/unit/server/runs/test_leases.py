from support.counted_calls import calls_of

from pluralllm.common.words.ids import ClientId, RunId
from pluralllm.common.words.names import TaskName
from pluralllm.server.runs.leases import Lease, Leases

BEN = ClientId("ben")
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


def test_a_new_lease_is_not_fetched_and_has_no_progress() -> None:
    leases = Leases(duration_s=10)
    leases.grant(ANN, RUN, TASK, 5)
    assert leases.of(ANN) == Lease(RUN, TASK, 15, 5, fetched=False, stage="", progress=0.0)
    assert leases.of(BEN) is None


def test_a_lease_is_held_on_one_task_of_one_client() -> None:
    leases = Leases(duration_s=10)
    assert not leases.is_held(TASK)
    leases.grant(ANN, RUN, TASK, 0)
    assert leases.is_held(TASK)
    for name in (
        "runs/r/rounds/2/tasks/train-ann",
        "runs/r/rounds/1/tasks/evaluate-ann",
        "runs/r/rounds/1/tasks/train-ben",
    ):
        assert not leases.is_held(TaskName.parse(name))
    leases.release(ANN)
    leases.release(BEN)
    assert not leases.is_held(TASK)


def test_a_fetched_task_is_marked_once_and_only_if_there_is_a_lease() -> None:
    leases = Leases(duration_s=10)
    leases.mark_fetched(ANN)
    leases.note(ANN, "training", 0.5)
    assert leases.of(ANN) is None
    leases.grant(ANN, RUN, TASK, 0)
    leases.mark_fetched(ANN)
    fetched = leases.of(ANN)
    assert fetched is not None
    assert fetched.fetched
    leases.mark_fetched(ANN)
    assert leases.of(ANN) is fetched


def test_expired_leases_are_those_of_one_run_sorted_by_client() -> None:
    leases = Leases(duration_s=10)
    for client, run in ((BEN, RUN), (ANN, RUN), (ClientId("cat"), RunId("other"))):
        leases.grant(client, run, TaskName.parse(f"runs/{run}/rounds/1/tasks/train-{client}"), 0)
    assert leases.expired(RUN, 9.999) == ()
    assert leases.expired(RUN, 10) == (ANN, BEN)


def test_leases_are_counted_by_run() -> None:
    leases = Leases(duration_s=10)
    assert leases.count_in(RUN) == 0
    leases.grant(ANN, RUN, TASK, 0)
    leases.grant(ANN, RUN, TASK, 0)
    leases.grant(BEN, RUN, TaskName.parse("runs/r/rounds/1/tasks/train-ben"), 0)
    assert leases.count_in(RUN) == 2
    leases.grant(ANN, RunId("other"), TaskName.parse("runs/other/rounds/1/tasks/train-ann"), 0)
    leases.release(BEN)
    assert (leases.count_in(RUN), leases.count_in(RunId("other"))) == (0, 1)


def test_leases_are_looked_at_only_when_one_can_have_expired() -> None:
    leases = Leases(duration_s=10)
    for number in range(400):
        client = ClientId(f"client-{number:03}")
        leases.grant(client, RUN, TaskName.parse(f"runs/r/rounds/1/tasks/train-{client}"), float(number))
        leases.renew(client, 500.0 + number)
    leases.expired(RUN, 505.0)
    assert calls_of(lambda: leases.expired(RUN, 509.9)) < 10
    assert leases.expired(RUN, 510.0) == ("client-000",)
    assert leases.expired(RUN, 510.5) == ("client-000",), "its lease is not ended yet"
