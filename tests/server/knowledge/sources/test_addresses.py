import ipaddress
import socket

import pytest

from server.knowledge.sources import Refused
from server.knowledge.sources.addresses import check_host, parsed, permitted, resolve


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1", "10.0.0.1", "172.16.5.5", "192.168.1.1", "169.254.169.254", "0.0.0.0", "100.64.0.1", "224.0.0.1",
        "255.255.255.255", "::1", "::", "fe80::1", "fe80::1%eth0", "fc00::1", "ff02::1", "::ffff:127.0.0.1",
        "::ffff:169.254.169.254", "64:ff9b::7f00:1", "2002:7f00:1::", "2002:a00:1::", "192.0.2.1", "198.18.0.1",
    ],
)  # fmt: skip
def test_no_inner_address_is_permitted_in_any_spelling(address: str) -> None:
    assert not permitted(address, [])


def test_a_named_network_permits_its_addresses_and_no_others() -> None:
    named = [ipaddress.ip_network("10.1.0.0/16")]
    assert permitted("10.1.2.3", named)
    assert permitted("::ffff:10.1.2.3", named)
    assert not permitted("10.2.2.3", named)
    assert permitted("93.184.216.34", [])
    assert permitted("2606:2800:220:1::1", [])


def test_a_host_with_some_private_addresses_is_asked_at_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    found = [(socket.AF_INET, 1, 6, "", (one, 80)) for one in ("127.0.0.1", "93.184.216.34", "10.0.0.1")]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: found)
    assert resolve("rebinding.example", 80, []) == [(socket.AF_INET, "93.184.216.34")]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: found[:1])
    with pytest.raises(Refused, match=r"is the private address 127\.0\.0\.1"):
        resolve("rebinding.example", 80, [])


@pytest.mark.parametrize(
    ("url", "hosts", "allowed"),
    [
        ("https://example.org/a", ["example.org"], True),
        ("https://EXAMPLE.org./a", ["example.org"], True),
        ("https://example.org:444/a", ["example.org"], False),
        ("http://example.org:8080/", ["example.org:8080"], True),
        ("https://docs.example.org/", ["example.org"], False),
        ("https://docs.example.org/", ["*.example.org"], True),
        ("https://example.org/", ["*.example.org"], False),
        ("https://evilexample.org/", ["*.example.org", "example.org"], False),
        ("https://example.org.evil.net/", ["example.org"], False),
    ],
)
def test_hosts_are_compared_whole(url: str, hosts: list[str], allowed: bool) -> None:
    if allowed:
        check_host(parsed(url), hosts)
    else:
        with pytest.raises(Refused, match="is not among"):
            check_host(parsed(url), hosts)


@pytest.mark.parametrize(
    "url",
    [
        "file:///etc/passwd",
        "ftp://a/b",
        "http://",
        "https://u:p@a/",
        "https://u@a/",
        "http://a:99999/",
        "http://[::1",
        "a/b",
        "http://a/b c",
        "http://a/b\r\nX: y",
    ],
)
def test_what_is_no_page_is_refused(url: str) -> None:
    with pytest.raises(Refused):
        parsed(url)
