"""Writes into a file what Orca says of a chat by keyboard in Chromium.

`python -m tests.browser.exams.screen_reader FILE`.
Needs Debian's orca, speech-dispatcher, at-spi2-core, dbus, xvfb and twm. Fails if an answer is not spoken.
"""

import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path

from playwright.sync_api import expect, sync_playwright

from tests.browser.conftest import PATIENCE_MS
from tests.browser.support.drivers import process
from tests.browser.support.hosts import document
from tests.browser.support.states import ANSWER, SKILL, SOURCES
from tests.browser.support.stub import Stub
from tests.exams.servers.app_server import listening

FLAGS = ["--no-sandbox", "--disable-gpu", "--force-renderer-accessibility"]
SPEECH_SECONDS = 4  # Orca has no event for having spoken


def chat(server: str, stub: Stub) -> None:
    """Open the chat by Tab and Enter, ask twice, go back through the answer, and close it."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), headless=False, args=FLAGS)
        page = browser.new_page(bypass_csp=True)
        page.set_default_timeout(PATIENCE_MS)
        page.set_content(document(f'<script async src="{server}/widget.js" data-skill="help"></script>'))
        page.locator(".launcher").wait_for()
        time.sleep(3 * SPEECH_SECONDS)
        for key in ("Tab", "Enter"):
            page.keyboard.press(key)
            time.sleep(SPEECH_SECONDS)
        for number, (text, sources) in enumerate([("Roses in winter.", []), (ANSWER, SOURCES)], 1):
            stub.pieces, stub.citations = (text,), sources
            page.keyboard.type("When?")
            page.keyboard.press("Enter")
            expect(page.locator(".actions")).to_have_count(number)
            time.sleep(2 * SPEECH_SECONDS)
        for key in [*["Shift+Tab"] * 8, "Escape"]:
            page.keyboard.press(key)
            time.sleep(SPEECH_SECONDS)
        browser.close()


def main(file: Path) -> None:
    if "DISPLAY" not in os.environ:
        again = [sys.executable, "-m", "tests.browser.exams.screen_reader", str(file)]
        raise SystemExit(subprocess.call(["dbus-run-session", "--", "xvfb-run", "-a", *again]))
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder, ExitStack() as stack:
        debug = Path(folder, "orca")
        own = {"HOME": folder, "XDG_RUNTIME_DIR": folder, "ACCESSIBILITY_ENABLED": "1"}
        subprocess.run(["gsettings", "set", "org.gnome.desktop.interface", "toolkit-accessibility", "true"])
        stack.enter_context(process("/usr/libexec/at-spi-bus-launcher", "--launch-immediately"))
        stack.enter_context(process("twm"))
        stack.enter_context(process("orca", "--replace", f"--debug-file={debug}", **own))
        time.sleep(2 * SPEECH_SECONDS)
        stub = Stub()
        stub.skill = dict(SKILL)
        with listening(stub.app()) as server:
            chat(server, stub)
        said = re.findall(r"SPEECH OUTPUT: '(.*?)'(?: None| \{|$)", debug.read_text(errors="replace"), re.MULTILINE)
    file.write_text("\n".join(said) + "\n")
    answers = [line for line in said if line.startswith("Answer complete.")]
    print(f"{len(said)} lines, {len(answers)} of 2 answers")
    assert len(answers) == 2


if __name__ == "__main__":
    main(Path(sys.argv[1]))
