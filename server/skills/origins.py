"""Web origins as a skill's file lists them: written as browsers send them."""

import ipaddress
import re
from collections.abc import Iterator, Sequence
from contextlib import suppress

ORIGIN = re.compile(r"https?://([a-z0-9]([a-z0-9.-]*[a-z0-9])?|\[[0-9a-f:]+\])(:[0-9]{1,5})?")
DEFAULT_PORTS = {"http": "80", "https": "443"}  # browsers leave them out of an origin


def origin_problems(field: str, origins: Sequence[str], allowed: str = "") -> Iterator[str]:
    """The faults of a skill's `field` of origins, one sentence each; the value `allowed` is right too."""
    for index, origin in enumerate(origins):
        if origin == allowed:
            continue
        if not ORIGIN.fullmatch(origin):
            yield (
                f"{origin!r} at `$.{field}[{index}]` is not an origin; write scheme://host or scheme://host:port, "
                "in lower case, without a path, and international names as xn--..."
            )
        elif (sent := _as_browsers_send(origin)) != origin:
            yield f"{origin!r} at `$.{field}[{index}]` is not how browsers send it; write {sent!r}"


def _as_browsers_send(origin: str) -> str:
    """The origin without its scheme's default port, and with an IPv6 address in its shortest form."""
    scheme, _, rest = origin.partition("://")
    host, port = rest, ""
    if found := re.fullmatch(r"(.*?):([0-9]+)", rest.rpartition("]")[2]):
        host, port = rest.removesuffix(f":{found[2]}"), str(min(int(found[2]), 65535))
    if host.startswith("["):
        with suppress(ValueError):
            host = f"[{ipaddress.IPv6Address(host[1:-1]).compressed}]"
    return f"{scheme}://{host}" + (f":{port}" if port and port != DEFAULT_PORTS[scheme] else "")
