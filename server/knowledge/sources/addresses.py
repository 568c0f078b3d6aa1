"""Which hosts may be asked, and which addresses they may resolve to: public ones, unless a network is named."""

import ipaddress
import socket
from collections.abc import Sequence
from urllib.parse import SplitResult, urlsplit

from server.knowledge.sources import Refused

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Network = ipaddress.IPv4Network | ipaddress.IPv6Network
TRANSLATED = ipaddress.IPv6Network("64:ff9b::/96")
"""NAT64 (RFC 6052): the last four bytes are an IPv4 address."""
PORTS = {"http": 80, "https": 443}


def parsed(url: str) -> SplitResult:
    """The parts of an absolute http or https URL; raises Refused for any other, and for one with a password."""
    try:
        parts = urlsplit(url)
        port_of(parts)
    except ValueError as error:
        raise Refused(f"{url!r} is no URL: {error}") from None
    if parts.scheme not in PORTS or not parts.hostname:
        raise Refused(f"{url!r} is no http or https URL")
    if parts.username is not None or parts.password is not None:
        raise Refused(f"{parts.hostname}: a URL with a name or password in it is not read")
    if any(letter <= " " or letter == "\x7f" for letter in url):
        raise Refused(f"{url!r} has blanks or control characters")
    return parts


def port_of(parts: SplitResult) -> int:
    """The port of a URL, written or not."""
    return parts.port or PORTS.get(parts.scheme, 0)


def host_of(parts: SplitResult) -> str:
    """The host of a URL as in `hosts`: with its port, unless that is the scheme's own."""
    name = (parts.hostname or "").rstrip(".").lower()
    name = f"[{name}]" if ":" in name else name
    return name if port_of(parts) == PORTS.get(parts.scheme) else f"{name}:{port_of(parts)}"


def check_host(parts: SplitResult, hosts: Sequence[str]) -> None:
    """Raise Refused unless the URL's host and port are among `hosts`; `*.example.org` has every host below it."""
    host = host_of(parts)
    for allowed in (one.lower() for one in hosts):
        if host == allowed or (allowed.startswith("*.") and host.endswith(allowed[1:])):
            return
    raise Refused(f"its host {host} is not among the source's `hosts`: {', '.join(hosts)}")


def resolve(host: str, port: int, private: Sequence[Network]) -> list[tuple[int, str]]:
    """Family and address of each address of `host` that may be connected to; raises Refused if there is none."""
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        raise Refused(f"the host {host} is not found: {error}") from None
    addresses = list(dict.fromkeys((int(family), str(where[0])) for family, _, _, _, where in found))
    allowed = [(family, address) for family, address in addresses if permitted(address, private)]
    if not allowed:
        raise Refused(
            f"the host {host} is the private address {addresses[0][1]}: name it in the source's `private_addresses` "
            "to read it"
        )
    return allowed


def permitted(address: str, private: Sequence[Network]) -> bool:
    """Whether an address, and the IPv4 address that it may embed, is public or in one of the networks `private`."""
    found = ipaddress.ip_address(address.partition("%")[0])
    every = [found, *_embedded(found)]
    named = any(one.version == network.version and one in network for one in every for network in private)
    return named or all(one.is_global and not one.is_multicast for one in every)


def _embedded(address: Address) -> list[Address]:
    """The IPv4 addresses inside an IPv6 address: mapped, 6to4, Teredo and NAT64."""
    if isinstance(address, ipaddress.IPv4Address):
        return []
    inner = [address.ipv4_mapped, address.sixtofour, *(address.teredo or ())]
    if address in TRANSLATED:
        inner.append(ipaddress.IPv4Address(int(address) & 0xFFFFFFFF))
    return [one for one in inner if one is not None]
