"""Photographs the skills manager of a real server on a real model, for the pages of docs/.

`python -m tests.browser.pictures.manager ARTIFACT FOLDER`
"""

import json
import shutil
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import takewhile
from pathlib import Path
from tempfile import TemporaryDirectory

from playwright.sync_api import Page, expect, sync_playwright

from tests.browser.conftest import FLAGS
from tests.support.visitor import Visitor

ORIGIN = "https://www.bicycles.example"
SETTINGS = """model = "{model}"
skills = "skills"
ledger = "usage.sqlite3"
keys = "keys.json"
skill_revisions = "edit"
conversation_storage = "database"
port = 0
admin_port = 0
"""
SKILL = f"""name = "help"
title = "Bicycle workshop"
greeting = "Hello! What would you like to know?"
origins = ["{ORIGIN}"]
max_tokens = 40
temperature = 0.3
tokens_per_day = 200000
keep_questions = true
system = \"\"\"
You are the help desk of a bicycle workshop. Answer in one short sentence.\"\"\"

[[examples]]
question = "How long does a repair take?"
answer = "Two working days. We call you when it is ready."
"""
MUSEUM = 'name = "museum"\ntitle = "Museum"\nsystem = "You are a museum\'s guide. Be brief."\n'
FRIENDLIER = SKILL.replace("in one short sentence", "in one short, friendly sentence")
QUESTIONS = ("How long does a repair take?", "Do you call me?", "Can you fix a flat tyre?", "When do you open?")
COMMENTS = ("It does not say when.", "Thank you!")


def main(artifact: Path, folder: Path) -> None:
    """Write `manager.png` and `manager-watch.png` into the folder, which is created."""
    folder.mkdir(parents=True, exist_ok=True)
    with serving(artifact) as (public, admin), sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=FLAGS)
        page = browser.new_page(viewport={"width": 1280, "height": 780}, reduced_motion="reduce")
        publish(admin)
        page.goto(f"{admin}/admin/manager")
        expect(page.locator("#problem")).to_contain_text("Valid, revision")
        tried(page)
        page.screenshot(path=folder / "manager.png")
        visit(public, admin)
        page.reload()
        expect(page.locator("#experiment tbody tr")).to_have_count(6)
        page.locator("#said > summary").click()
        expect(page.locator("#ratings b").first).to_be_visible()
        page.locator("#revisions-title").evaluate("e => e.scrollIntoView()")
        page.screenshot(path=folder / "manager-watch.png")
        browser.close()


@contextmanager
def serving(artifact: Path) -> Iterator[tuple[str, str]]:
    """The addresses of the public and the admin listener of a new server in a folder of its own."""
    with TemporaryDirectory() as scratch:
        files = {
            "server.toml": SETTINGS.format(model=artifact.absolute()),
            "skills/help.toml": SKILL,
            "skills/museum.toml": MUSEUM,
        }
        for name, text in files.items():
            place = Path(scratch) / name
            place.parent.mkdir(exist_ok=True)
            place.write_text(text)
        command = [sys.executable, "-m", "server.commands", "serve", "server.toml"]
        with subprocess.Popen(command, cwd=scratch, stdout=subprocess.PIPE, text=True) as server:
            try:
                assert server.stdout
                lines = list(takewhile(lambda line: "Ctrl-C" not in line, server.stdout))
                found = {words[0]: words[1] for line in lines if len(words := line.split()) == 2}
                yield found["API"].removesuffix("/v1"), found["usage"].removesuffix("/admin")
            finally:
                server.terminate()


def post(admin: str, action: str, body: object) -> None:
    """Send a POST about the skill `help`; raises HTTPError."""
    content = {"Content-Type": "application/json"}
    request = urllib.request.Request(f"{admin}/admin/skills/help/{action}", json.dumps(body).encode(), content)
    urllib.request.urlopen(request, timeout=300).close()


def publish(admin: str) -> None:
    """Save two revisions, and publish the first."""
    post(admin, "revisions", {"text": SKILL, "after": 0, "reason": "as it was in the file"})
    post(admin, "revisions", {"text": FRIENDLIER, "after": 1, "reason": "friendlier"})
    post(admin, "publish", {"number": 1})


def tried(page: Page) -> None:
    """Ask the draft, look at a word's probability, and show what it would change."""
    page.get_by_label("Your question").fill("How long does a repair take?")
    page.get_by_role("button", name="Send").click()
    expect(page.locator(".turn .numbers")).to_contain_text("ended by")
    page.locator(".token").nth(3).hover()


def visit(public: str, admin: str) -> None:
    """Compare both revisions with a dozen visitors, who rate what they get."""
    post(admin, "experiment/start", {"rival": 2, "share": 0.5, "reason": "friendlier?"})
    for number in range(12):
        visitor = Visitor(None, url=public, origin=ORIGIN)
        reply = visitor.ask(QUESTIONS[number % len(QUESTIONS)])[0].data["reply"]
        up = number % 3 > 0
        comment = COMMENTS[up] if number % 2 else ""
        rating = {"rating": "up" if up else "down", "comment": comment, "reasons": [] if up else ["wrong"]}
        visitor.post("feedback", {"reply": reply, **rating})


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
