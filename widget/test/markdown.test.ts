import assert from "node:assert/strict";
import { test } from "node:test";
import MarkdownIt from "markdown-it";
import { element } from "../src/dom/elements.ts";
import { tableNode } from "../src/extras/answer/table-node.ts";
import { MarkdownRenderer } from "../src/markdown/renderer.ts";
import { parseTable, startsTable } from "../src/markdown/table.ts";
import { EventStreamParser } from "../src/transport/sse.ts";
import { ATTACKS, SNIPPETS } from "./corpus.ts";
import { FakeElement, installFakeDocument } from "./document.ts";

installFakeDocument();

/** Creates a renderer with the extension that the app loads on first use. */
function rendererFor(root: FakeElement, allowsImage = (_: string): boolean => false): MarkdownRenderer {
  const renderer = new MarkdownRenderer(root as unknown as HTMLElement, { allowsImage, needsExtension: () => {} });
  renderer.extend({ startsTable, parseTable, table: (table, inline) => element("div", {}, tableNode(table, inline)), wrapCode: (node) => node });
  return renderer;
}

/** Renders a text chunk by chunk and returns the final HTML. */
function renderChunks(chunks: string[]): string {
  const root = new FakeElement("div");
  const renderer = rendererFor(root);
  let text = "";
  for (const chunk of chunks) renderer.render((text += chunk), true);
  renderer.render(text, false);
  return root.innerHTML;
}

/** Renders with markdown-it, adapted to our choices: loose lists, hard breaks, headings ranked from h3 on, images as links, `del` for deleted. */
function referenceHtml(text: string): string {
  const reference = new MarkdownIt({ breaks: true, linkify: true });
  reference.linkify.set({ fuzzyLink: false, fuzzyEmail: false });
  reference.renderer.rules.image = (tokens, at) => {
    const address = reference.utils.escapeHtml(String(tokens[at]?.attrGet("src")));
    return `<a href="${address}">${reference.utils.escapeHtml(tokens[at]?.content ?? "")}</a>`;
  };
  const tokens = reference.parse(text, {});
  const above: number[] = []; // the headings that the current one is below
  for (const token of tokens) {
    token.hidden = false;
    if (token.type === "heading_open") {
      const level = Number(token.tag[1]);
      above.splice(0, above.length, ...above.filter((other) => other < level), level);
    }
    if (token.type.startsWith("heading")) token.tag = `h${Math.min(6, above.length + 2)}`;
    if (token.tag === "ol" && token.nesting === 1) token.attrSet("start", String(token.attrGet("start") ?? 1));
    token.info = "";
    for (const child of token.children ?? []) if (child.tag === "s") child.tag = "del";
  }
  return reference.renderer.render(tokens, reference.options, {});
}

/** Removes differences that no reader sees: white space between blocks, titles, the final slash of an address. */
function normalise(html: string): string {
  return html
    .replace(/ title="[^"]*"| style="text-align:[a-z]+"|<\/?div>/g, "")
    .replace(/(href="[a-z]+:\/\/[^/"]+)"/g, '$1/"')
    .replace(/\n(?=<\/code>)/g, "")
    .replace(/\s*\n\s*(?=<)|(?<=>)\s*\n\s*/g, "")
    .replace(/<li><\/li>/g, "<li><p></p></li>");
}

for (const snippet of SNIPPETS) {
  test(`markdown-it agrees: ${JSON.stringify(snippet)}`, () => assert.equal(normalise(renderChunks([snippet])), normalise(referenceHtml(snippet))));
}

for (const text of [...SNIPPETS, ...ATTACKS, SNIPPETS.join("\n\n")]) {
  test(`chunking does not matter: ${JSON.stringify(text.slice(0, 60))}`, () => {
    const whole = renderChunks([text]);
    const size = text.length > 500 ? 7 : 1;
    const pieces = text.match(new RegExp(`[^]{1,${size}}`, "g")) ?? [];
    assert.equal(renderChunks(pieces), whole);
    for (let cut = 1; cut < text.length; cut += size) assert.equal(renderChunks([text.slice(0, cut), text.slice(cut)]), whole);
  });
}

/** Renders an event stream that arrives in these pieces. */
function renderStream(pieces: Uint8Array[]): string {
  const root = new FakeElement("div");
  const renderer = rendererFor(root);
  const reader = new EventStreamParser();
  let text = "";
  for (const piece of pieces) {
    for (const { data } of reader.push(piece)) text += JSON.parse(data).text;
    renderer.render(text, true);
  }
  renderer.render(text, false);
  return root.innerHTML;
}

test("a stream cut at any byte renders the same", () => {
  const text = "# Ärger 🌱\n\n1. **a_b_c** `x`\n2. [é](https://example.org/ü?q=(1))\n\n| 日 | b |\n|:-|-:|\n| 🌱 | d |\n\n```py\né = 1\n```\n> ende";
  const events = (text.match(/[^]{1,7}/gu) ?? []).map((piece, id) => `id: ${id}\r\nevent: text\r\ndata: ${JSON.stringify({ text: piece })}\r\n\r\n`);
  const bytes = new TextEncoder().encode(events.join(""));
  const whole = renderChunks([text]);
  assert.equal(renderStream([...bytes].map((byte) => Uint8Array.of(byte))), whole);
  for (let cut = 0; cut <= bytes.length; cut++) assert.equal(renderStream([bytes.slice(0, cut), bytes.slice(cut)]), whole);
});

const ALLOWED_TAGS = /<\/?(?:p|h3|h4|h5|h6|ul|li|pre|code|blockquote|hr|br|strong|em|del|a|ol|div|table|thead|tbody|tr|th|td)(?: (?:start|href)="[^"<>]*")?>/g;

for (const attack of ATTACKS) {
  test(`stays harmless: ${JSON.stringify(attack)}`, () => {
    const html = renderChunks([attack]);
    assert.doesNotMatch(html.replace(ALLOWED_TAGS, ""), /[<>]/);
    for (const [, address = ""] of html.matchAll(/href="([^"]*)"/g)) assert.match(address, /^(?:https?:\/\/[^@]*|mailto:.*|tel:.*)$/);
  });
}

test("finished blocks keep their nodes while the rest grows", () => {
  const root = new FakeElement("div");
  const renderer = rendererFor(root);
  renderer.render("first\n\nsec", true);
  const [first] = root.children;
  renderer.render("first\n\nsecond\n\n- third", true);
  assert.equal(root.children[0], first);
  assert.equal(root.innerHTML, "<p>first</p><p>second</p><ul><li><p>third</p></li></ul>");
});

test("an incomplete address at the end is no link", () => {
  const root = new FakeElement("div");
  const renderer = rendererFor(root);
  for (const part of ["see https://exam", "[a](https://exam", "![a](https://exam", "[a](https://example.org \"ti"]) {
    renderer.render(part, true);
    assert.doesNotMatch(root.innerHTML, /href/);
    assert.equal(root.innerHTML.includes("https"), part.startsWith("see"), root.innerHTML);
  }
});

test("headings continue the panel's without gaps", () => {
  const html = renderChunks(["### a\n##### b\n#### c\n## d\n> # e\n\n- ## f\n\n###### g"]);
  assert.deepEqual(html.match(/<h\d>\w/g), ["<h3>a", "<h4>b", "<h4>c", "<h3>d", "<h3>e", "<h4>f", "<h5>g"]);
});

test("a link whose text names another host says where it leads", () => {
  const shown = (text: string): string => renderChunks([text]).replace(/<[^>]+>/g, "");
  assert.equal(shown("[paypal.com](https://evil.example/login)"), "paypal.com (evil.example)");
  assert.equal(shown("[https://www.Bank.example/a](https://bank.example.evil.example)"), "https://www.Bank.example/a (bank.example.evil.example)");
  for (const same of ["[the guide](https://example.org)", "[example.org](https://www.example.org/a)", "<https://example.org/>", "[setup.py](https://example.org)"]) {
    assert.doesNotMatch(shown(same), /\(/);
  }
});

test("tasks have a box, empty or checked", () => {
  assert.equal(renderChunks(["- [ ] one\n- [x] two\n- [X] **three**\n- [y] four"]), "<ul><li><p>☐ one</p></li><li><p>☑ two</p></li><li><p>☑ <strong>three</strong></p></li><li><p>[y] four</p></li></ul>");
});

test("controls of bidirectional text are removed", () => {
  assert.equal(renderChunks(["a\u202eb\u202c `\u2066c\u2069` [\u202ad](https://example.org/)"]), '<p>ab <code>c</code> <a href="https://example.org/">d</a></p>');
});

test("without the extension, tables and code are shown as they were written, and the extension is asked for", () => {
  const root = new FakeElement("div");
  let asked = 0;
  const renderer = new MarkdownRenderer(root as unknown as HTMLElement, { allowsImage: () => false, needsExtension: () => asked++ });
  renderer.render("plain - text | with `marks`", false);
  assert.equal(asked, 0);
  renderer.render("| a | b |\n|---|---|\n| 1 | 2 |\n\n```\nx\n```", false);
  assert.equal(root.innerHTML, "<p>| a | b |<br>|---|---|<br>| 1 | 2 |</p><pre><code>x</code></pre>");
  assert.ok(asked > 0);
  renderer.extend({ startsTable, parseTable, table: (table, inline) => tableNode(table, inline), wrapCode: (node) => element("div", {}, node) });
  renderer.render("| a | b |\n|---|---|\n| 1 | 2 |\n\n```\nx\n```", false);
  assert.match(root.innerHTML, /^<table>.*<\/table><div><pre><code>x<\/code><\/pre><\/div>$/);
});

test("a long text is rendered in slices", () => {
  const root = new FakeElement("div");
  const text = Array.from({ length: 300 }, (_, number) => `Paragraph **${number}**`).join("\n\n");
  let slices = 1;
  const renderer = rendererFor(root);
  while (!renderer.render(text, false, 0)) slices++;
  assert.ok(slices > 100, `${slices} slices`);
  assert.equal(root.innerHTML, renderChunks([text]));
});

test("finished list items and streaming code keep their nodes", () => {
  const root = new FakeElement("div");
  const renderer = rendererFor(root);
  renderer.render("- first\n- sec", true);
  const first = root.children[0]?.children[0];
  renderer.render("- first\n- second\n- third\n\n```py\nx", true);
  assert.equal(root.children[0]?.children[0], first);
  const code = root.children[1];
  renderer.render("- first\n- second\n- third\n\n```py\nx = 1\ny", true);
  assert.equal(root.children[1], code);
  assert.equal(code?.innerHTML, "<code>x = 1\ny</code>");
});

test("ambiguous endings are held back, and unclosed spans render as if closed", () => {
  const renderOpen = (text: string): string => {
    const root = new FakeElement("div");
    rendererFor(root).render(text, true);
    return root.innerHTML;
  };
  for (const end of ["\n-", "\n1.", "\n##", "\n``", "\n| a | b", "\n| a | b |\n|--", "\n>"]) assert.equal(renderOpen(`text${end}`), "<p>text</p>");
  assert.equal(renderOpen("**bo"), "<p><strong>bo</strong></p>");
  assert.equal(renderOpen("`co"), "<p><code>co</code></p>");
  assert.equal(renderOpen("2 * 3 and *.txt"), "<p>2 * 3 and *.txt</p>");
});

test("only images of allowed addresses are shown", () => {
  const root = new FakeElement("div");
  const allowsImage = (address: string): boolean => address.startsWith("https://good.example/");
  const renderer = rendererFor(root, allowsImage);
  renderer.render("![a *b*](https://good.example/1.png) ![c](https://bad.example/2.png)", false);
  assert.match(root.innerHTML, /^<p><img><\/img> <a href="https:\/\/bad.example\/2.png">c<\/a><\/p>$/);
});

test("long malformed input parses fast", () => {
  const start = process.cpuUsage(); // unlike the clock, unaffected by other processes
  const marks = ["[", "*a ", "`a", "> ", "- ", "_", "](", "![", "**a", "<", "1. ", "a_", "~~a ", "| ", "&#", "[a](", "|a\n"];
  for (const mark of marks) renderChunks([mark.repeat(3000)]);
  const { user } = process.cpuUsage(start);
  assert.ok(user < 5_000_000, `${user} µs`);
});
