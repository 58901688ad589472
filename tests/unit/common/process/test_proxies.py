"""One function says how an address is reached; the URL of a proxy is read without showing its password."""

from dataclasses import dataclass

import pytest

from pluralllm.common.errors.tree import InvalidConfig, PluralError, StorageFull, Unreachable
from pluralllm.common.process.environment import proxies_of
from pluralllm.common.process.proxies import NO_PROXY, Proxies, Proxy, parse_proxy

HERE = "http://proxy.example:3128"
COORDINATOR = "fl.example.org:7443"
VARIABLES = ("https_proxy", "HTTPS_PROXY", "http_proxy", "no_proxy", "NO_PROXY")


@pytest.fixture(autouse=True)
def _empty_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)


def is_direct(address: str, exempt: str = "") -> bool:
    return Proxies(HERE, tuple(exempt.replace(",", " ").split())).to(address) is None


@pytest.mark.parametrize(
    "address",
    [
        *(
            "127.0.0.1:1",
            "127.9.9.9:1",
            "[::1]:1",
            "[::ffff:127.0.0.1]:1",
            "localhost:1",
            "LOCALHOST:1",
            "localhost.:1",
        ),
        "api.localhost:1",
    ],
)
def test_this_machine_is_never_reached_through_a_proxy(address: str) -> None:
    assert is_direct(address)


@pytest.mark.parametrize(
    "address", [COORDINATOR, "128.0.0.1:1", "[2001:db8::1]:1", "notlocalhost:1", "localhost.org:1"]
)
def test_every_other_machine_is(address: str) -> None:
    assert not is_direct(address)


@pytest.mark.parametrize(
    ("entry", "direct", "not_direct"),
    [
        ("*", COORDINATOR, None),
        ("fl.example.org", COORDINATOR, "example.org:1"),
        ("example.org", COORDINATOR, "fl.anexample.org:1"),
        (".example.org", COORDINATOR, "fl.example.org.com:1"),
        ("*.example.org", COORDINATOR, "fl.example.net:1"),
        ("EXAMPLE.org", "FL.example.ORG:1", "ample.org:1"),
        ("fl.example.org:7443", COORDINATOR, "fl.example.org:7444"),
        (".example.org:7443", COORDINATOR, "fl.example.org:7444"),
        ("*.example.org:7443", COORDINATOR, "fl.example.org:7444"),
        ("*:7443", COORDINATOR, "fl.example.org:7444"),
        ("[2001:db8::1]", "[2001:db8::1]:1", "[2001:db8::2]:1"),
        ("2001:db8::1", "[2001:db8::1]:1", "[2001:db8::2]:1"),
        ("10.0.0.0/8", "10.1.2.3:1", "11.0.0.1:1"),
        ("10.1.2.3", "10.1.2.3:1", "10.1.2.4:1"),
        ("10.1.2.3:5", "10.1.2.3:5", "10.1.2.3:6"),
        ("2001:db8::/32", "[2001:db8::1]:1", "[2001:db9::1]:1"),
        ("[2001:db8::/32]", "[2001:db8::1]:1", "[2001:db9::1]:1"),
        ("[2001:db8::]/32", "[2001:db8::1]:1", "[2001:db9::1]:1"),
        ("[2001:db8::]/32:5", "[2001:db8::1]:5", "[2001:db8::1]:6"),
        ("[2001:DB8::/32]:5", "[2001:db8::1]:5", "[2001:db8::1]:6"),
        ("[2001:db8::1]:5", "[2001:db8::1]:5", "[2001:db8::1]:6"),
        ("a.org, b.org ,c.org", "b.org:1", "d.org:1"),
        (".", "", COORDINATOR),
    ],
)
def test_an_entry_of_no_proxy_exempts_its_hosts_and_no_others(entry: str, direct: str, not_direct: str | None) -> None:
    assert not direct or is_direct(direct, entry)
    assert not_direct is None or not is_direct(not_direct, entry)


@pytest.mark.parametrize(
    ("url", "proxy"),
    [
        ("http://proxy.example:3128", Proxy("proxy.example:3128")),
        ("HTTP://proxy.example:3128/", Proxy("proxy.example:3128")),
        ("proxy.example:3128", Proxy("proxy.example:3128")),
        ("http://proxy.example", Proxy("proxy.example:80")),
        ("http://[2001:db8::1]:8080", Proxy("[2001:db8::1]:8080")),
        ("http://ann:p%40ss@proxy.example:3128", Proxy("proxy.example:3128", "ann:p@ss")),
        ("http://ann:p@ss@proxy.example:3128", Proxy("proxy.example:3128", "ann:p@ss")),
    ],
)
def test_the_url_of_a_proxy_is_read(url: str, proxy: Proxy) -> None:
    assert parse_proxy(url) == proxy


def test_a_proxy_gets_its_password_as_http_basic_and_shows_it_nowhere() -> None:
    proxy = parse_proxy("http://ann:hidden@proxy.example:3128")
    assert proxy.authorization == "Basic YW5uOmhpZGRlbg=="
    assert Proxy("proxy.example:3128").authorization == ""
    assert Proxy("proxy.example:3128", "ann").authorization == "Basic YW5uOg=="  # an empty password has a colon, too
    assert "hidden" not in repr(proxy)
    assert "hidden" not in repr(Proxies("http://ann:hidden@proxy.example:3128"))


@pytest.mark.parametrize(
    "url",
    [
        *(
            "https://ann:hidden@proxy.example:443",
            "socks5://hidden@proxy.example:1080",
            "http://ann:hidden",
            "http://hidden/x",
        ),
        *("http://ann:hidden@", "http://ann:hidden@proxy:0", "http://ann:hidden@proxy:70000", "http://a b:hidden", ""),
    ],
)
def test_a_url_that_cannot_be_used_is_refused_without_repeating_it(url: str) -> None:
    with pytest.raises(ValueError, match="must be http://HOST:PORT") as refusal:
        parse_proxy(url)
    assert "hidden" not in str(refusal.value)


def test_a_url_that_cannot_be_used_matters_only_where_it_would_be_used() -> None:
    proxies = Proxies("socks5://hidden@proxy.example:1080", ("example.org",), "https_proxy in the environment")
    assert proxies.to(COORDINATOR) is None
    with pytest.raises(
        InvalidConfig, match="https_proxy in the environment is not valid:\n  the URL of the proxy"
    ) as refusal:
        proxies.to("other.org:1")
    assert "hidden" not in str(refusal.value)


@dataclass(frozen=True, slots=True)
class Source:
    """A case: the configuration, the environment, and the proxy that follows from them."""

    configured: str | None
    environment: dict[str, str]
    address: str | None


@pytest.mark.parametrize(
    "source",
    [
        Source(None, {}, None),
        Source(None, {"https_proxy": "http://a:1"}, "a:1"),
        Source(None, {"HTTPS_PROXY": "http://b:1"}, "b:1"),
        Source(None, {"https_proxy": "http://a:1", "HTTPS_PROXY": "http://b:1"}, "a:1"),
        Source(None, {"https_proxy": "", "HTTPS_PROXY": "http://b:1"}, "b:1"),
        Source(None, {"http_proxy": "http://c:1"}, None),
        Source("http://d:1", {"https_proxy": "http://a:1"}, "d:1"),
        Source(NO_PROXY, {"https_proxy": "http://a:1"}, None),
        Source("NONE", {"https_proxy": "http://a:1"}, None),
        Source(None, {"https_proxy": " None "}, None),
        Source(None, {"https_proxy": "http://a:1", "no_proxy": "example.org"}, None),
        Source(None, {"https_proxy": "http://a:1", "NO_PROXY": "example.org"}, None),
        Source(None, {"https_proxy": "http://a:1", "no_proxy": "x.org", "NO_PROXY": "example.org"}, "a:1"),
        Source("http://d:1", {"no_proxy": "example.org"}, None),
    ],
)
def test_the_configuration_comes_before_the_environment(source: Source, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in source.environment.items():
        monkeypatch.setenv(name, value)
    proxy = proxies_of(source.configured).to(COORDINATOR)
    assert (None if proxy is None else proxy.address) == source.address


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (
            Unreachable(address=COORDINATOR, problem="it is off"),
            "it is off (through the proxy proxy.example:3128, which",
        ),
        (
            Unreachable(address=COORDINATOR, problem="last error: HTTP proxy returned response code 407"),
            f"The proxy proxy.example:3128 does not connect to {COORDINATOR}: it answers 407; it needs a user",
        ),
        (Unreachable(address="127.0.0.1:1", problem="it is off"), "127.0.0.1:1 does not answer: it is off. "),
        (StorageFull(what="x"), "No space left for x."),
    ],
)
def test_an_unreachable_coordinator_is_reported_with_the_proxy_before_it(error: PluralError, text: str) -> None:
    assert text in str(Proxies(HERE).explained(error))
