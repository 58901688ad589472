"""Links to the page and the sessions that they open: each works as long as it should, for one member, and a link works once."""

from dataclasses import replace

import pytest

from pluralllm.common.errors.tree import NotFound
from pluralllm.common.words.ids import ClientId
from pluralllm.common.words.roles import MemberRole
from pluralllm.server.members.access import Principal
from pluralllm.server.members.page_links import LINK_S, MAX_OF_MEMBER, SESSION_S, PageLinks

ANN = Principal(ClientId("ann"), MemberRole.OBSERVER, "1f")
BEN = replace(ANN, name=ClientId("ben"), serial="2f")


class Place:
    def __init__(self) -> None:
        self.now_s = 1000.0
        self.links = PageLinks(lambda: self.now_s)
        self.links.address = "x:1"

    def session(self) -> str:
        link = self.links.redeem(self.links.new_link(ANN))
        assert link is not None
        return self.links.new_session(link)


@pytest.fixture
def place() -> Place:
    return Place()


def test_a_link_has_a_secret_of_256_bits_that_belongs_to_the_certificate_of_its_member(place: Place) -> None:
    token = place.links.new_link(ANN)
    assert len(token) == 43
    link = place.links.redeem(token)
    assert link is not None
    assert link.owner == ANN


def test_a_link_works_once(place: Place) -> None:
    token = place.links.new_link(ANN)
    assert place.links.redeem(token) is not None
    assert place.links.redeem(token) is None


def test_a_link_that_is_given_back_works_once_more_within_its_minute(place: Place) -> None:
    token = place.links.new_link(ANN)
    for age_s in (59.0, 1.0):
        link = place.links.redeem(token)
        assert link is not None
        place.links.give_back(token, link)
        place.now_s += age_s
    assert place.links.redeem(token) is None


def test_a_session_that_is_ended_is_none(place: Place) -> None:
    ended, other = place.session(), place.session()
    place.links.end_session(ended)
    place.links.end_session("")
    assert [place.links.session(cookie) is None for cookie in (ended, other)] == [True, False]


@pytest.mark.parametrize(("age_s", "works"), [(59.9, True), (60.0, False)])
def test_a_link_works_for_a_minute(place: Place, age_s: float, works: bool) -> None:
    token = place.links.new_link(ANN)
    place.now_s += age_s
    assert (place.links.redeem(token) is not None) is works


@pytest.mark.parametrize(("age_s", "works"), [(3599.9, True), (3600.0, False)])
def test_a_session_lasts_an_hour(place: Place, age_s: float, works: bool) -> None:
    cookie = place.session()
    place.now_s += age_s
    session = place.links.session(cookie)
    assert (session is not None) is works
    assert session is None or session.owner == ANN


def test_neither_a_link_nor_a_guess_is_a_session(place: Place) -> None:
    token = place.links.new_link(ANN)
    assert [place.links.session(word) for word in (token, "", "x" * 43)] == [None] * 3
    assert place.links.redeem(place.session()) is None


def test_further_links_and_sessions_of_a_member_end_its_oldest_and_nobody_elses(place: Place) -> None:
    of_ben = place.links.new_link(BEN)
    tokens = [place.links.new_link(ANN) for _ in range(MAX_OF_MEMBER + 1)]
    assert [place.links.redeem(token) is not None for token in tokens] == [False] + [True] * MAX_OF_MEMBER
    assert place.links.redeem(of_ben) is not None
    cookies = [place.session() for _ in range(MAX_OF_MEMBER + 1)]
    assert [place.links.session(cookie) is not None for cookie in cookies] == [False] + [True] * MAX_OF_MEMBER


def test_what_has_expired_takes_no_memory(place: Place) -> None:
    place.links.new_link(ANN)
    place.session()
    place.now_s += max(LINK_S, SESSION_S)
    place.links.redeem(place.links.new_link(BEN))
    assert place.links._links == {}
    place.session()
    assert len(place.links._sessions) == 1


def test_no_secret_is_kept(place: Place) -> None:
    token, cookie = place.links.new_link(ANN), place.session()
    assert token not in repr(vars(place.links))
    assert cookie not in repr(vars(place.links))


def test_there_is_no_link_to_a_page_that_is_not_served(place: Place) -> None:
    place.links.address = ""
    with pytest.raises(NotFound, match="page_remote_listen opens it"):
        place.links.new_link(ANN)
