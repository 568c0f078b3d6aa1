"""Host pages harder than ours: hostile stylesheets, other policies, scripts included twice or late."""

from html import escape

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

HOSTILE = """
* { all: unset !important }
body > *, html > * { opacity: .3 !important; pointer-events: none !important; transform: scale(.5) !important }
html > :not(head, body) { display: none !important; visibility: hidden !important; filter: blur(9px) !important }
button, textarea, div, span, p, h2 { font-size: 5px !important; color: red !important; position: static !important }
.cover { position: fixed !important; inset: 0 !important; z-index: 2147483647 !important; display: block !important }
"""
CLOBBERS = "".join(
    f'<form name="{name}"></form><img name="{name}" alt="">'
    for name in [
        "createElement",
        "createElementNS",
        "querySelector",
        "currentScript",
        "documentElement",
        "readyState",
        "activeElement",
        "body",
        "head",
        "addEventListener",
        "SkillChat",
        "fetch",
    ]
)
TRAPS = """<script nonce="n">
window.shortcuts = [];
for (const target of [window, document]) for (const capture of [true, false]) {
    const heard = e => { shortcuts.push(e.key); e.preventDefault() };
    if (target !== window) target.addEventListener("keydown", heard, capture);
}
for (const name of ["mode", "signal", "method", "body", "headers", "cache", "title", "detail", "once", "error"]) {
    Object.prototype[name] = "bad";
}
Array.prototype.toJSON = () => "broken";
</script>"""
TRUSTED = "require-trusted-types-for 'script'; trusted-types 'none'"

QUEUE = """<script nonce="n">
    window.SkillChat = function () { (SkillChat.q = SkillChat.q || []).push(arguments) };
    SkillChat("init", { skill: "help", title: "My title" });
    SkillChat("setContext", "Page: queue");
    SkillChat("send", "From the queue");</script>"""
CHATS = '<skill-chat skill="one" title="First"></skill-chat><skill-chat skill="two" title="Second" open></skill-chat>'
INLINE = """<main><h1>Ask the gardeners</h1><p>Answers in the page itself, above the fold.</p>
    <skill-chat skill="help"></skill-chat><p>The text below is not covered.</p></main>"""


def document(head: str, body: str = "<main><h1>Host page</h1></main>") -> str:
    start = '<!doctype html><html lang="en"><head><title>Host</title><link rel="icon" href="data:,">'
    return f"{start}{head}</head><body>{body}</body></html>"


def extra_pages(url: str) -> list[Route]:
    """The routes of all host pages; `url` is the address of widget.js."""
    origin = url.removesuffix("/widget.js")
    src = escape(url)
    line = f'<script async src="{src}" data-skill="help"></script>'
    late = f"""<script nonce="n">addEventListener("load", () => {{
        const script = document.createElement("script");
        Object.assign(script, {{ src: "{src}", type: "module" }}).dataset.skill = "help";
        document.head.append(script); }})</script>"""
    nonced = f'<script nonce="n" async src="{src}" data-skill="help"></script>'
    strict = f"default-src 'none'; img-src data:; connect-src {origin}; {TRUSTED}; "
    hostile = (
        f"default-src 'none'; img-src data:; script-src {origin}; connect-src {origin}; style-src 'nonce-n'; {TRUSTED}"
    )
    loader = f'<script async src="{src}"></script>'
    options = f"""<script async src="{src}" data-skill="help" data-key="pk_test" data-position="bottom-left"
        data-lang="de-AT" data-theme="dark" data-accent="#b00"
        data-title="&lt;b&gt;Titel&lt;/b&gt;" data-greeting="Hallo!"
        data-starters="Eins?|Zwei?" data-persist="local" data-z-index="50" data-model="other" data-prompt="Obey"
        data-temperature="2" data-system="Obey"></script>"""
    ours = f"script-src {origin}"
    return [
        page("/queue", document(QUEUE + loader), strict + f"script-src 'nonce-n' {origin}"),
        page("/options", document(options), strict + ours),
        page("/elements", document(loader, CHATS), strict + ours),
        page("/inline", document(loader, INLINE), strict + ours),
        page("/arabic", document(line).replace('lang="en"', 'lang="ar" dir="rtl"'), strict + ours),
        page("/traps", document(TRAPS + line, CLOBBERS), strict + f"script-src 'nonce-n' {origin}"),
        page("/hostile", document(f'<style nonce="n">{HOSTILE}</style>{line}', "<div class=cover></div>"), hostile),
        page("/nonce", document(nonced), strict + "script-src 'nonce-n'"),
        page("/dynamic", document(nonced), strict + "script-src 'nonce-n' 'strict-dynamic'"),
        page("/late", document(late), strict.replace(TRUSTED, "") + "script-src 'nonce-n' 'strict-dynamic'"),
        page("/twice", document(line + line + line), strict + f"script-src {origin}"),
        page("/nameless", document(f'<script async src="{src}"></script>'), strict + f"script-src {origin}"),
    ]


def page(path: str, html: str, policy: str) -> Route:
    async def serve(_: Request) -> Response:
        return Response(html, headers={"Content-Security-Policy": policy}, media_type="text/html")

    return Route(path, serve)
