import pytest
from hypothesis import given
from hypothesis import strategies as st

from pluralllm.common.errors.tree import InvalidArgument, PluralError
from pluralllm.common.words.ids import ClientId, ModelVersion, RoundNumber, RunId, is_id
from pluralllm.common.words.names import NEWEST, MemberName, ModelName, RoundName, RunName, TaskKind, TaskName
from pluralllm.common.words.reward_weights import RewardRun

Name = MemberName | RunName | RoundName | ModelName | TaskName
KINDS: tuple[type[Name], ...] = (MemberName, RunName, RoundName, ModelName, TaskName)
LETTERS = "abcdefghijklmnopqrstuvwxyz"
IDS = st.text(LETTERS + "0123456789-", max_size=39).map(lambda rest: f"r{rest}")
RUNS = IDS.map(RunId)
NUMBERS = st.integers(0, 999_999_999)
REQUESTED_RUNS = st.one_of(RUNS, st.just(NEWEST))
NAMES = st.one_of(
    st.builds(MemberName, IDS.map(ClientId)),
    st.builds(RunName, REQUESTED_RUNS),
    st.builds(RoundName, REQUESTED_RUNS, NUMBERS.map(RoundNumber)),
    st.builds(ModelName, REQUESTED_RUNS, st.one_of(st.none(), NUMBERS.map(ModelVersion))),
    st.builds(TaskName, RUNS, NUMBERS.map(RoundNumber), st.sampled_from(TaskKind), IDS.map(ClientId)),
)
LONGEST = "a" + "9" * 39


@given(NAMES)
def test_a_name_survives_its_text(name: Name) -> None:
    assert type(name).parse(str(name)) == name


@given(NAMES, st.integers(0, 90), st.sampled_from(["\n", "/", "-", "0", "A", "é", "١", " ", "\0", ""]))
def test_a_text_that_is_read_is_the_only_text_of_its_name(name: Name, position: int, mark: str) -> None:
    text = str(name)
    changed = text[:position] + mark + text[position + (mark == "") :]
    for kind in KINDS:
        try:
            read = kind.parse(changed)
        except InvalidArgument:
            continue
        assert str(read) == changed


@given(st.text(max_size=60))
def test_any_other_text_is_refused_as_the_caller_may_expect(text: str) -> None:
    for kind in KINDS:
        with pytest.raises(PluralError) as refusal:
            kind.parse(text)
        assert isinstance(refusal.value, InvalidArgument)


@pytest.mark.parametrize(
    ("kind", "text"),
    [
        (RunName, f"runs/{LONGEST}"),
        (RunName, "runs/-"),
        (MemberName, f"members/{LONGEST}"),
        (RoundName, "runs/r/rounds/0"),
        (RoundName, "runs/-/rounds/999999999"),
        (ModelName, "runs/r/models/0"),
        (ModelName, "runs/-/models/-"),
        (TaskName, "runs/r/rounds/0/tasks/evaluate-a"),
        (TaskName, f"runs/{LONGEST}/rounds/999999999/tasks/reward-{LONGEST}"),
        (TaskName, "runs/r-/rounds/1/tasks/train-train-"),
    ],
)
def test_names_at_their_limits_are_read(kind: type[Name], text: str) -> None:
    assert str(kind.parse(text)) == text


@pytest.mark.parametrize(
    ("kind", "text", "allowed"),
    [
        (RunName, "runs/", "runs/RUN"),
        (RunName, "runs/0a", "runs/RUN"),
        (RunName, "runs/-a", "runs/RUN"),
        (RunName, f"runs/{LONGEST}9", "runs/RUN"),
        (RunName, "runs/first\n", "runs/RUN"),
        (RunName, "runs/é", "runs/RUN"),
        (RunName, "runs/r/rounds/1", "runs/RUN"),
        (RunName, " runs/r", "runs/RUN"),
        (MemberName, "members/-", "members/NAME"),
        (MemberName, "members/../admin", "members/NAME"),
        (MemberName, "members/?", "members/NAME"),
        (RoundName, "runs/r/rounds/-", "runs/RUN/rounds/NUMBER"),
        (RoundName, "runs/r/rounds/01", "runs/RUN/rounds/NUMBER"),
        (RoundName, "runs/r/rounds/1000000000", "runs/RUN/rounds/NUMBER"),
        (RoundName, "runs/r/rounds/١", "runs/RUN/rounds/NUMBER"),
        (RoundName, "runs/r/rounds/-1", "runs/RUN/rounds/NUMBER"),
        (RoundName, "runs/r/rounds/1\n", "runs/RUN/rounds/NUMBER"),
        (ModelName, "runs/r/models/00", "runs/RUN/models/NUMBER"),
        (ModelName, "runs/r/models/", "runs/RUN/models/NUMBER"),
        (ModelName, "runs/r/rounds/1", "runs/RUN/models/NUMBER"),
        (TaskName, "runs/-/rounds/1/tasks/train-ann", "runs/RUN/rounds/N/tasks/KIND-CLIENT"),
        (TaskName, "runs/r/rounds/01/tasks/train-ann", "runs/RUN/rounds/N/tasks/KIND-CLIENT"),
        (TaskName, "runs/r/rounds/1/tasks/Train-ann", "runs/RUN/rounds/N/tasks/KIND-CLIENT"),
        (TaskName, "runs/r/rounds/1/tasks/train-", "runs/RUN/rounds/N/tasks/KIND-CLIENT"),
        (TaskName, f"runs/r/rounds/1/tasks/train-{LONGEST}9", "runs/RUN/rounds/N/tasks/KIND-CLIENT"),
        (TaskName, "runs/r/rounds/1/tasks/train-ann\n", "runs/RUN/rounds/N/tasks/KIND-CLIENT"),
    ],
)
def test_a_refusal_says_which_field_and_what_is_allowed(kind: type[Name], text: str, allowed: str) -> None:
    with pytest.raises(InvalidArgument) as refusal:
        kind.parse(text)
    assert refusal.value.field == ("task" if kind is TaskName else "name")
    assert refusal.value.problem == f"{text!r} is not {allowed}"


@given(IDS)
def test_the_ids_in_names_are_the_ids_of_the_project(text: str) -> None:
    assert is_id(text)
    assert not is_id(f"{text}\n")


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("demo", "runs/demo/models/-"),
        ("demo@", "runs/demo/models/-"),
        ("demo@-", "runs/demo/models/-"),
        ("-", "runs/-/models/-"),
        ("demo@0", "runs/demo/models/0"),
        ("demo@007", "runs/demo/models/7"),
    ],
)
def test_the_short_form_of_a_model_is_read(text: str, name: str) -> None:
    assert str(ModelName.parse_short(text)) == name


@pytest.mark.parametrize("version", ["x", "1.0", "-1", "1000000000", "١", "1\n", "1@2"])
def test_the_short_form_of_a_model_has_a_number(version: str) -> None:
    with pytest.raises(InvalidArgument, match=r"version: is .* must be a number"):
        ModelName.parse_short(f"demo@{version}")


@pytest.mark.parametrize("source", ["runs/-/models/1", "runs/s/models/-", "runs/s/models/01", "runs/0s/models/1"])
def test_a_spec_names_one_version_for_ever(source: str) -> None:
    with pytest.raises(ValueError, match="source"):
        RewardRun(source=source, model_digest="0" * 64)


@given(RUNS, NUMBERS.map(ModelVersion))
def test_a_spec_takes_the_name_of_every_version(run: RunId, version: ModelVersion) -> None:
    name = ModelName(run, version)
    assert ModelName.parse(RewardRun(source=str(name), model_digest="0" * 64).source) == name
