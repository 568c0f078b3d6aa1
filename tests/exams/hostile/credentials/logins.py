"""`python -m tests.exams.hostile.credentials.logins`: forged, stolen and replayed answers to the admin login.

None may open a session, each must be in the audit log, and a person who signs in afterwards must be let in.
"""

import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from server.metering.audit import chain
from server.metering.ledger.connection import snapshot
from server.web.http.throttle import BURST
from tests.browser.support.drivers import free_port
from tests.exams.row import Row, show
from tests.support.harness import parts, says, served
from tests.support.provider import CLIENT_SECRET, FOLDER, Browser, provider

AUDIENCES, NONCES = ("wrong-audience", "shared-audience"), ("wrong-nonce", "no-nonce")
FAULTS = (*AUDIENCES, "wrong-issuer", *NONCES, "expired", "eternal", "other-key", "unsigned")
FORGED = 100
FOREIGN = "https://evil.example"


class Tried(NamedTuple):
    """How many sessions each kind of attempt opened, and what else was answered."""

    faulty: int
    replayed: int
    stolen: int
    roleless: int
    posts: list[int]
    """Statuses of a viewer's POST, from another page and from the server's own."""
    forged: Counter[int]
    late: int
    """The status of a correct login afterwards."""


def forged_logins(forged: int = FORGED) -> list[Row]:
    """Try every way in on a server of its own, and compare with its audit log."""
    if not (FOLDER / "node_modules").exists():
        return [Row("admin logins were forged", "no provider", "run `tests/install` first", False)]
    with tempfile.TemporaryDirectory(prefix="secateur-exam-") as name:
        with listener(Path(name)) as admin:
            found = tried(admin, forged)
        with snapshot(str(Path(name) / "usage.sqlite3")) as database:
            entries = list(chain.entries(database))
    who = Counter(entry.who for entry in entries if entry.action in ("login", "admin.refused"))
    named = who["oidc:ben"], who["oidc:ada"]
    shown = ", ".join(f"{status}: {count}" for status, count in sorted(found.forged.items()))
    throttled = found.forged[401] <= BURST + 1 and not set(found.forged) - {401, 429}
    return [
        Row(f"faulty ID tokens ({len(FAULTS)} kinds)", f"{found.faulty} sessions", "0", not found.faulty),
        Row("answers forged, replayed, another browser's", f"{found.replayed} sessions", "0", not found.replayed),
        Row("a stolen code with one's own verifier", f"{found.stolen} sessions", "0", not found.stolen),
        Row("an account without a role", f"{found.roleless} sessions", "0", not found.roleless),
        Row("a viewer's POST, from elsewhere and the page", str(found.posts), "[403, 403]", found.posts == [403, 403]),
        Row(f"{forged} forged answers", shown, f"401: at most {BURST + 1}, else 429", throttled),
        Row("a person afterwards", str(found.late), "303", found.late == 303),
        Row("entries of ben and ada", str(named), "(3, 2)", named == (3, 2)),
        Row("the chain", f"{len(entries)} entries", "0 faults", not list(chain.faults(entries))),
    ]


def tried(admin: str, forged: int) -> Tried:
    """Try each kind of attempt at this admin listener."""
    faulty = [opened(admin, browser, browser.callback(admin, fault)) for fault in FAULTS for browser in [Browser()]]
    replayed = [opened(admin, Browser(), url) for url in replays(admin)]
    thief, guest, viewer = Browser(), Browser(), Browser()
    stolen = opened(admin, thief, with_stolen_code(admin, thief))
    roleless = opened(admin, guest, guest.callback(admin, "eve"))
    viewer.sign_in(admin, "ben")
    posts = [viewer.ask(f"{admin}/admin/reload", {}, Origin=origin).status for origin in (FOREIGN, admin)]
    answers = [Browser().ask(f"{admin}/admin/login/callback?state={n}&code=x").status for n in range(forged)]
    late = Browser().sign_in(admin, "ada").status
    return Tried(sum(faulty), sum(replayed), int(stolen), int(roleless), posts, Counter(answers), late)


@contextmanager
def listener(folder: Path) -> Iterator[str]:
    """A server with a login; yields the address of its admin listener."""
    port = free_port()
    admin = f"http://127.0.0.1:{port}"
    with provider(f"{admin}/admin/login/callback") as running:
        table = {"issuer": running.issuer, "client_id": "secateur", "client_secret": CLIENT_SECRET, "url": admin}
        login = {**table, "viewers": ["staff"], "operators": ["sre"]}
        runner = says(folder, "ok")
        with served(parts(folder, runner, admin_port=port, admin_login=login), runner):
            yield admin


def opened(admin: str, browser: Browser, url: str) -> bool:
    """Whether the address gives the browser a session."""
    browser.ask(url)
    return browser.ask(f"{admin}/admin/summary").status != 401


def replays(admin: str) -> Iterator[str]:
    """Addresses of the callback that belong to another browser, to a finished login, or to nobody."""
    browser = Browser()
    url = browser.callback(admin, "ada")
    yield url
    browser.ask(url)
    yield url
    yield url.replace("state=", "state=x")
    yield f"{admin}/admin/login/callback"


def with_stolen_code(admin: str, thief: Browser) -> str:
    """The thief's own callback, with the code of somebody else's."""
    stolen, own = Browser().callback(admin, "ada"), thief.callback(admin, "eve")
    return own.replace(own.partition("code=")[2].partition("&")[0], stolen.partition("code=")[2].partition("&")[0])


if __name__ == "__main__":
    sys.exit(show(forged_logins()))
