"""Where the widget leads a visitor who wants a person."""

import re
from collections.abc import Iterator
from typing import Annotated
from urllib.parse import urlsplit

from msgspec import Meta, Struct

MAIL = re.compile(r"[\w.+-]+@[\w-]+(\.[\w-]+)+", re.ASCII)


class Handover(Struct, frozen=True, forbid_unknown_fields=True):
    """Where a visitor reaches a person; give one of the three."""

    mail: Annotated[str, Meta(max_length=254)] = ""
    """An address: the visitor's own mail program opens, with the transcript as text."""
    link: Annotated[str, Meta(max_length=2000)] = ""
    """A page, http or https: it opens in a new tab and receives nothing."""
    webhook: Annotated[str, Meta(max_length=2000)] = ""
    """An http or https URL: the server posts the transcript with the visitor's note to it, as JSON."""

    @property
    def shown(self) -> dict[str, str]:
        """What the widget learns: which of the three, and its address unless that is the webhook's."""
        kind = "mail" if self.mail else "link" if self.link else "webhook"
        return {"kind": kind, "address": self.mail or self.link}


def handover_problems(handover: Handover | None) -> Iterator[str]:
    """Faults of a handover, one sentence each."""
    if handover is None:
        return
    if sum(map(bool, (handover.mail, handover.link, handover.webhook))) != 1:
        yield "`$.handover` must have one of `mail`, `link` and `webhook`"
    if handover.mail and not MAIL.fullmatch(handover.mail):
        yield "`$.handover.mail` is not a mail address"
    for name, url in (("link", handover.link), ("webhook", handover.webhook)):
        if url and (urlsplit(url).scheme not in ("http", "https") or not urlsplit(url).hostname):
            yield f"`$.handover.{name}` must begin with http:// or https:// and name a host"
