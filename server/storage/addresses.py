"""Checks addresses, networks and URLs that settings name; nothing is looked up."""

import ipaddress
from urllib.parse import urlsplit


def is_address(url: str) -> bool:
    """Whether `url` is a well-formed http(s) URL without credentials, ready for a POST."""
    try:
        address = urlsplit(url)
        url.encode("ascii")
        address.netloc.encode("idna")
        named = bool(address.hostname) and address.port != 0  # `port` raises ValueError if malformed
    except ValueError:
        return False
    return named and address.scheme in ("http", "https") and "@" not in address.netloc and not set(url) & set(" \t\r\n")


def is_loopback(host: str) -> bool:
    """Whether a listener bound to `host` is reachable from this machine only."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def is_network(text: str) -> bool:
    """Whether `text` is an IP address or a network such as 10.0.0.0/8."""
    try:
        return bool(ipaddress.ip_network(text))
    except ValueError:
        return False
