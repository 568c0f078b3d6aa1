"""Each example of docs/guide/widget.md, run verbatim except for the server's address."""

import json
import os
import re
import shutil
import subprocess
import tarfile
import urllib.request
from pathlib import Path

import pytest
from playwright.sync_api import expect
from starlette.responses import Response

from tests.browser.conftest import Visitor
from tests.browser.support.hosts import document
from tests.browser.support.stub import Stub
from tests.browser.test_build import WIDGET, needs_node, run
from tests.browser.widget.test_api import NODES
from tests.browser.widget.test_widget import answer, ask, open_chat
from tests.conftest import ROOT

Made = dict[str, Response]
DOCS = (ROOT / "docs" / "guide" / "widget.md").read_text()
BLOCKS = re.findall(r"```(\w*)\n(.*?)```", DOCS, re.DOTALL)
WORDPRESS = """<?php
$actions = $filters = $scripts = [];
function add_action($name, $run) { global $actions; $actions[$name][] = $run; }
function add_filter($name, $run, $priority, $count) { global $filters; $filters[$name][] = $run; }
function wp_enqueue_script($handle, $src, $needs, $version, $how) { global $scripts; $scripts[$handle] = $src; }
%s
foreach ($actions['wp_enqueue_scripts'] as $run) $run();
foreach ($scripts as $handle => $src) {
    $tag = "<script type=\\"text/javascript\\" src=\\"$src\\" id=\\"$handle-js\\" async></script>";
    foreach ($filters['script_loader_tag'] as $run) $tag = $run($tag, $handle);
    echo $tag;
}
"""
MAIN = """
import { StrictMode } from "react";
import { createRoot } from "react-dom/client";
import { flushSync } from "react-dom";
import { Corner, Help } from "./example.jsx";
const root = createRoot(document.querySelector("main"));
const App = () => <><h1>App</h1><Help /><Corner /></>;
window.show = (now) => flushSync(() => root.render(<StrictMode>{now && <App />}</StrictMode>));
show(true);
"""


def block(language: str, word: str, origin: str = "") -> str:
    """The example in `language` that contains `word`, for the server at `origin`."""
    found: str
    (found,) = [text for kind, text in BLOCKS if kind == language and word in text]
    return found.replace("https://chat.example.org", origin)


def page_of(made: Made, html: str, policy: str, script: bytes = b"") -> str:
    """The path of a page with this HTML and policy; app.js beside it is `script`."""
    made["page"] = Response(html, headers={"Content-Security-Policy": policy}, media_type="text/html")
    made["app.js"] = Response(script, media_type="text/javascript")
    return "/made/page"


def strict(origin: str) -> str:
    """The documentation's policy, which allows nothing else."""
    return f"default-src 'none'; img-src data:; {block('', 'connect-src', origin).strip()}"


def test_every_example_is_tested() -> None:
    tried = [kind for kind, _ in BLOCKS]
    assert sorted(tried) == ["", "css", *["html"] * 4, "js", "jsx", "php"]


def test_the_line_the_queue_and_the_size(open_page: Visitor, host: str, stub: Stub, server: str, made: Made) -> None:
    queue = block("html", "SkillChat.q").replace("<script>", '<script nonce="n">')
    calls = '<script nonce="n">SkillChat("send", "From the page")</script>'
    size = f'<style nonce="n">{block("css", "height")}</style>'
    policy = strict(server).replace("script-src", "script-src 'nonce-n'") + "; style-src 'nonce-n'"
    line = block("html", '/widget.js" data-skill="help"></script>\n', server)
    html = document(size + queue + calls + line, '<main><skill-chat skill="help"></skill-chat></main>')
    page = open_page(host + page_of(made, html, policy))
    expect(answer(page)).to_have_text("Hello world.")
    assert stub.asked[0]["text"] == "From the page"
    box = page.locator("main skill-chat").bounding_box()
    assert box is not None
    assert box["height"] == 640
    send = page.locator("main skill-chat .send")
    assert send.evaluate("e => getComputedStyle(e).backgroundColor") == "rgb(11, 92, 173)"


def test_words_of_the_pages_own(open_page: Visitor, host: str, stub: Stub, server: str, made: Made) -> None:
    page = open_page(host + page_of(made, document(block("html", "data-texts", server)), strict(server)))
    open_chat(page)
    expect(page.get_by_placeholder("Ask the gardener")).to_be_visible()
    expect(page.locator(".answer")).to_have_count(1)
    page.get_by_role("textbox", name="Your message").fill("x" * 8191)
    expect(page.locator(".limit")).to_have_text("1 letter left")


def pinned(server: str) -> str:
    """The script line that pins the bytes, with the version and digest that the server publishes."""
    published = json.load(urllib.request.urlopen(f"{server}/v/latest/sri.json"))
    line = block("html", "integrity=", server)
    return line.replace("0.2.0", published["version"]).replace("sha384-...", published["integrity"])


def test_the_pinned_file(open_page: Visitor, host: str, stub: Stub, server: str, made: Made) -> None:
    page = open_page(host + page_of(made, document("", f"<main></main>{pinned(server)}"), strict(server)))
    open_chat(page)
    ask(page, "Hello")
    expect(answer(page)).to_have_text("Hello world.")
    assert not [url for url in open_page.asked if "/assets/app" in url], "all of it is in one file"
    changed = document("", pinned(server).replace("sha384-", "sha384-AAA"))
    other = open_page("about:blank")
    with other.expect_console_message(lambda message: "integrity" in message.text):
        other.goto(host + page_of(made, changed, strict(server)))
    assert other.evaluate("[typeof SkillChat, customElements.get('skill-chat') ?? null]") == ["undefined", None]


@pytest.mark.skipif(not shutil.which("php"), reason="Debian's php-cli is not installed")
def test_wordpress(open_page: Visitor, host: str, stub: Stub, server: str, made: Made, tmp_path: Path) -> None:
    (tmp_path / "page.php").write_text(WORDPRESS % block("php", "add_action", server))
    done = subprocess.run(["php", str(tmp_path / "page.php")], capture_output=True, text=True, check=True)
    assert done.stdout.count('data-skill="help"') == 1
    page = open_page(host + page_of(made, document(done.stdout), strict(server)))
    open_chat(page)
    ask(page, "Hello")
    expect(answer(page)).to_have_text("Hello world.")


@pytest.mark.skipif(not shutil.which("php"), reason="Debian's php-cli is not installed")
def test_the_lines_on_the_demos_page(open_page: Visitor, host: str, stub: Stub, server: str, made: Made) -> None:
    page = open_page(host)
    line, php, react, policy = page.locator("pre").all_inner_texts()
    stand_in = "function add_action($name, $run) { $run(); } "
    printed = subprocess.run(["php", "-r", stand_in + php], capture_output=True, text=True, check=True).stdout
    assert printed == line
    element = react.replace(" />", "></skill-chat>")  # as React renders it
    html = document(printed, f"<main><h1>Host</h1>{element}</main>")
    page.goto(host + page_of(made, html, f"default-src 'none'; img-src data:; {policy}"))
    page.locator("html > skill-chat .launcher").click()
    for chat in (page.locator("html > skill-chat"), page.locator("main skill-chat")):
        chat.get_by_role("textbox", name="Your message").fill("Hello")
        page.keyboard.press("Enter")
        expect(chat.locator(".answer .text").last).to_have_text("Hello world.")


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the package as npm installs it."""
    folder = tmp_path_factory.mktemp("package")
    run("npm", "pack", "--silent", "--pack-destination", str(folder))
    (packed,) = folder.glob("*.tgz")
    with tarfile.open(packed) as archive:
        archive.extractall(folder, filter="data")
    (folder / "node_modules").mkdir()
    (folder / "package").rename(folder / "node_modules" / "secateur-widget")
    return folder


def bundle(folder: Path, name: str) -> bytes:
    """The bundled script of an application in `folder`."""
    options = ["--bundle", "--format=esm", "--jsx=automatic", "--define:process.env.NODE_ENV='development'"]
    command = ["node_modules/.bin/esbuild", str(folder / name), *options]
    done = subprocess.run(
        command, cwd=WIDGET, capture_output=True, env={**os.environ, "NODE_PATH": str(WIDGET / "node_modules")}
    )
    assert done.returncode == 0, done.stderr.decode()
    return done.stdout


@needs_node
def test_react_in_strict_mode(
    open_page: Visitor, host: str, stub: Stub, server: str, made: Made, package: Path
) -> None:
    (package / "example.jsx").write_text(block("jsx", "FloatingChat", server))
    (package / "main.jsx").write_text(MAIN)
    policy = f"default-src 'none'; img-src data:; script-src {host}; connect-src {server}"
    app = '<main></main><script type="module" src="app.js"></script>'
    page = open_page(host + page_of(made, document("", app), policy, bundle(package, "main.jsx")))
    expect(page.locator("skill-chat")).to_have_count(2)
    page.locator("html > skill-chat .launcher").click()
    for chat in (page.locator("main skill-chat"), page.locator("html > skill-chat")):
        chat.get_by_role("textbox", name="Your message").fill("Hello")
        page.keyboard.press("Enter")
        expect(chat.locator(".answer .text").last).to_have_text("Hello world.")
    assert page.locator("main skill-chat h2").inner_text() == "Ask us"
    page.evaluate("show(false)")
    expect(page.locator("skill-chat")).to_have_count(0)
    before = page.evaluate(NODES)
    page.evaluate("for (let n = 0; n < 50; n++) { show(true); show(false) }")
    expect(page.locator("skill-chat")).to_have_count(0)
    assert page.evaluate(NODES) == before
    assert len(stub.sessions) == 2
    page.evaluate("show(true)")
    expect(page.locator("skill-chat")).to_have_count(2)


@needs_node
def test_npm_without_a_framework(open_page: Visitor, host: str, server: str, made: Made, package: Path) -> None:
    (package / "main.js").write_text(block("js", "define", server))
    policy = f"default-src 'none'; img-src data:; script-src {host}; connect-src {server}"
    app = '<main id="chat"></main><script type="module" src="app.js"></script>'
    page = open_page(host + page_of(made, document("", app), policy, bundle(package, "main.js")))
    expect(page.get_by_role("region", name="Garden help")).to_be_visible()
    ask(page, "Hello")
    expect(answer(page)).to_have_text("Hello world.")
    assert page.locator("main skill-chat").count() == 1


@needs_node
def test_the_package_has_types_and_does_nothing_on_import(package: Path) -> None:
    installed = package / "node_modules" / "secateur-widget" / "dist"
    assert {path.name for path in installed.iterdir()} >= {
        f"{name}.{kind}" for name in ("index", "react", "vue") for kind in ("js", "d.ts")
    }
    (package / "use.ts").write_text(
        'import { define, type SkillChat } from "./node_modules/secateur-widget/dist/index.js";\n'
        'const chat: SkillChat = define("https://chat.example.org/");\nchat("init", { skill: "help" });\n'
    )
    options = ["--noEmit", "--strict", "--lib", "es2023,dom", "--ignoreConfig"]
    run("node_modules/.bin/tsc", *options, str(package / "use.ts"))
    run("node", "--input-type=module", "--eval", f"await import('{installed}/index.js')")
