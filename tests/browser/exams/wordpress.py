"""Installs WordPress with the plugin of widget/wordpress in a browser, and chats on its pages.

`python -m tests.browser.exams.wordpress`.

Needs Debian's wordpress, wordpress-theme-twentytwentyfive, mariadb-server, php-cli and php-mysql; writes only into
a temporary folder.
"""

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from playwright.sync_api import Page, expect, sync_playwright

from tests.browser.conftest import FLAGS, PATIENCE_MS
from tests.browser.support.drivers import connected, free_port
from tests.browser.support.stub import Stub
from tests.conftest import ROOT
from tests.exams.servers.app_server import listening
from tests.support.harness import until

SOURCE = Path("/usr/share/wordpress")
PLUGIN = ROOT / "widget/wordpress/secateur-chat"
CONFIG = """<?php
define('DB_NAME', 'wordpress'); define('DB_USER', 'root'); define('DB_PASSWORD', '');
define('DB_HOST', 'localhost:%s');
define('DB_CHARSET', 'utf8mb4'); define('DB_COLLATE', '');
foreach (['WP_HTTP_BLOCK_EXTERNAL', 'DISABLE_WP_CRON', 'WP_DEBUG', 'WP_DEBUG_LOG'] as $name) define($name, true);
foreach (['AUTH', 'SECURE_AUTH', 'LOGGED_IN', 'NONCE'] as $name) {
    define("{$name}_KEY", $name);
    define("{$name}_SALT", $name);
}
$table_prefix = 'wp_';
if (!defined('ABSPATH')) define('ABSPATH', __DIR__ . '/');
require_once ABSPATH . 'wp-settings.php';
"""
PAGE = """require 'wp-load.php';
$page = ['post_type' => 'page', 'post_status' => 'publish', 'post_title' => 'Ask'];
echo wp_insert_post($page + ['post_content' => '[secateur_chat title="Ask us"]']);
"""
PASSWORD = "an unguessable phrase 42"


@contextmanager
def process(*command: str, folder: Path) -> Iterator[None]:
    with (folder / f"{Path(command[0]).name}.log").open("wb") as log:
        started = subprocess.Popen(
            command, cwd=folder, stdout=log, stderr=log, env={**os.environ, "PHP_CLI_SERVER_WORKERS": "4"}
        )
        try:
            yield
        finally:
            started.terminate()
            started.wait(60)


@contextmanager
def wordpress(folder: Path) -> Iterator[str]:
    """Serve a WordPress that is not installed yet; its address."""
    site, data, socket = folder / "site", folder / "data", folder / "sql"
    shutil.copytree(SOURCE, site, ignore_dangling_symlinks=True)
    (site / "wp-config.php").write_text(CONFIG % socket)
    shutil.copytree(PLUGIN, site / "wp-content/plugins/secateur-chat")
    here = [f"--datadir={data}", f"--user={os.environ.get('USER', 'root')}"]
    subprocess.run(
        ["mariadb-install-db", "--no-defaults", "--auth-root-authentication-method=normal", *here],
        check=True,
        capture_output=True,
    )
    port = free_port()
    with ExitStack() as stack:
        stack.enter_context(
            process("mariadbd", "--no-defaults", *here, f"--socket={socket}", "--skip-networking", folder=folder)
        )
        until(socket.exists)
        subprocess.run(
            ["mariadb", "--no-defaults", f"--socket={socket}", "-e", "create database wordpress"], check=True
        )
        stack.enter_context(process("php", "-S", f"127.0.0.1:{port}", "-t", str(site), folder=folder))
        connected(port).close()
        yield f"http://127.0.0.1:{port}"


def install(page: Page, site: str, server: str) -> None:
    """Install WordPress, activate the plugin and set it up, as an administrator does."""
    page.goto(f"{site}/wp-admin/install.php")
    if page.locator("#language-continue").count():
        page.locator("#language-continue").click()
    page.locator("#weblog_title").fill("Garden")
    page.locator("#user_login").fill("owner")
    page.locator("#pass1").fill(PASSWORD)
    page.locator("#admin_email").fill("owner@example.org")
    page.locator("#submit").click()
    page.goto(f"{site}/wp-login.php")
    page.locator("#user_login").fill("owner")
    page.locator("#user_pass").fill(PASSWORD)
    page.locator("#wp-submit").click()
    page.goto(f"{site}/wp-admin/plugins.php")
    page.locator("#activate-secateur-chat").click()
    page.goto(f"{site}/wp-admin/options-general.php?page=secateur-chat")
    page.get_by_label("Server").fill("javascript:alert(1)")
    page.locator("#submit").click()
    expect(page.locator("#setting-error-server")).to_contain_text("The server is an address")
    for name, value in {
        "Server": server,
        "Skill": "help",
        "Title": 'Roses "R" us',
        "Label on the launcher": "Ask",
    }.items():
        page.get_by_label(name, exact=True).fill(value)
    page.get_by_label("A floating chat on every page").check()
    page.locator("#submit").click()
    expect(page.locator("#setting-error-settings_updated")).to_be_visible()


def chat(page: Page, within: str, name: str) -> None:
    place = page.locator(within)
    if "html" in within:
        place.locator(".launcher").click()
    expect(place.locator("h2")).to_have_text(name)
    place.get_by_role("textbox", name="Your message").fill("Hello")
    page.keyboard.press("Enter")
    expect(place.locator(".answer .text").last).to_have_text("Hello world.")
    print(f"{page.url}: {name} answers")


def main() -> None:
    expect.set_options(timeout=PATIENCE_MS)
    with tempfile.TemporaryDirectory() as name, ExitStack() as stack:
        folder = Path(name)
        site = stack.enter_context(wordpress(folder))
        server = stack.enter_context(listening(Stub().app()))
        playwright = stack.enter_context(sync_playwright())
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=FLAGS)
        admin = browser.new_page()
        admin.set_default_timeout(PATIENCE_MS)
        install(admin, site, server)
        made = subprocess.run(["php", "-r", PAGE], cwd=folder / "site", capture_output=True, text=True, check=True)
        visitor = browser.new_context().new_page()
        visitor.set_default_timeout(PATIENCE_MS)
        errors: list[str] = []
        visitor.on("pageerror", lambda error: errors.append(str(error)))
        visitor.goto(site)
        chat(visitor, "html > skill-chat", 'Roses "R" us')
        visitor.goto(f"{site}/?page_id={made.stdout.strip()}")
        chat(visitor, "body skill-chat", "Ask us")
        assert errors == []
        log = folder / "site/wp-content/debug.log"
        ours = [line for line in log.read_text().splitlines() if "secateur" in line] if log.exists() else []
        assert ours == [], ours
        version = subprocess.run(
            ["php", "-r", "require 'wp-includes/version.php'; echo $wp_version;"],
            cwd=folder / "site",
            capture_output=True,
            text=True,
        )
        print(f"WordPress {version.stdout}: installed, set up and chatted with")
        browser.close()


if __name__ == "__main__":
    main()
