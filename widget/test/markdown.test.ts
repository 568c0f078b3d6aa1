import assert from "node:assert/strict";
import { test } from "node:test";
import MarkdownIt from "markdown-it";
import { MarkdownRenderer } from "../src/markdown/renderer.ts";
import { EventStreamParser } from "../src/transport/sse.ts";
import { ATTACKS, SNIPPETS } from "./corpus.ts";
import { install, Tag } from "./document.ts";

install();

function markdownIn(root: Tag): MarkdownRenderer {
  return new MarkdownRenderer(root as unknown as HTMLElement, { wrapCode: (node) => node, allowsImage: () => false });
}

function shown(chunks: string[]): string {
  const root = new Tag("div");
  const markdown = markdownIn(root);
  let text = "";
  for (const chunk of chunks) markdown.render((text += chunk), true);
  markdown.render(text, false);
  return root.inner();
}

/** markdown-it, told of our choices: no tight lists, breaks are kept, h1 is h3, images are links, deleted text is `del`. */
function oracle(text: string): string {
  const reference = new MarkdownIt({ breaks: true, linkify: true });
  reference.linkify.set({ fuzzyLink: false, fuzzyEmail: false });
  reference.renderer.rules.image = (tokens, at) => {
    const address = reference.utils.escapeHtml(String(tokens[at]?.attrGet("src")));
    return `<a href="${address}">${reference.utils.escapeHtml(tokens[at]?.content ?? "")}</a>`;
  };
  const tokens = reference.parse(text, {});
  for (const token of tokens) {
    token.hidden = false;
    if (token.type.startsWith("heading")) token.tag = `h${Math.min(6, Number(token.tag[1]) + 2)}`;
    if (token.tag === "ol" && token.nesting === 1) token.attrSet("start", String(token.attrGet("start") ?? 1));
    token.info = "";
    for (const child of token.children ?? []) if (child.tag === "s") child.tag = "del";
  }
  return reference.renderer.render(tokens, reference.options, {});
}

/** Without the differences that no reader sees: white space between blocks, titles, the final slash of an address. */
function normal(html: string): string {
  return html
    .replace(/ title="[^"]*"| style="text-align:[a-z]+"|<\/?div>/g, "")
    .replace(/(href="[a-z]+:\/\/[^/"]+)"/g, '$1/"')
    .replace(/\n(?=<\/code>)/g, "")
    .replace(/\s*\n\s*(?=<)|(?<=>)\s*\n\s*/g, "")
    .replace(/<li><\/li>/g, "<li><p></p></li>");
}

for (const snippet of SNIPPETS) {
  test(`markdown-it agrees: ${JSON.stringify(snippet)}`, () => assert.equal(normal(shown([snippet])), normal(oracle(snippet))));
}

for (const text of [...SNIPPETS, ...ATTACKS, SNIPPETS.join("\n\n")]) {
  test(`chunks do not matter: ${JSON.stringify(text.slice(0, 60))}`, () => {
    const whole = shown([text]);
    const size = text.length > 500 ? 7 : 1;
    const pieces = text.match(new RegExp(`[^]{1,${size}}`, "g")) ?? [];
    assert.equal(shown(pieces), whole);
    for (let cut = 1; cut < text.length; cut += size) assert.equal(shown([text.slice(0, cut), text.slice(cut)]), whole);
  });
}

/** What is shown of a stream that comes in these pieces. */
function streamed(pieces: Uint8Array[]): string {
  const root = new Tag("div");
  const markdown = markdownIn(root);
  const reader = new EventStreamParser();
  let text = "";
  for (const piece of pieces) {
    for (const { data } of reader.push(piece)) text += JSON.parse(data).text;
    markdown.render(text, true);
  }
  markdown.render(text, false);
  return root.inner();
}

test("a stream cut at every byte shows the same", () => {
  const text = "# Ärger 🌱\n\n1. **a_b_c** `x`\n2. [é](https://example.org/ü?q=(1))\n\n| 日 | b |\n|:-|-:|\n| 🌱 | d |\n\n```py\né = 1\n```\n> ende";
  const events = (text.match(/[^]{1,7}/gu) ?? []).map((piece, id) => `id: ${id}\r\nevent: text\r\ndata: ${JSON.stringify({ text: piece })}\r\n\r\n`);
  const bytes = new TextEncoder().encode(events.join(""));
  const whole = shown([text]);
  assert.equal(streamed([...bytes].map((byte) => Uint8Array.of(byte))), whole);
  for (let cut = 0; cut <= bytes.length; cut++) assert.equal(streamed([bytes.slice(0, cut), bytes.slice(cut)]), whole);
});

const ELEMENTS = /<\/?(?:p|h3|h4|h5|h6|ul|li|pre|code|blockquote|hr|br|strong|em|del|a|ol|div|table|thead|tbody|tr|th|td)(?: (?:start|href)="[^"<>]*")?>/g;

for (const attack of ATTACKS) {
  test(`harmless: ${JSON.stringify(attack)}`, () => {
    const html = shown([attack]);
    assert.doesNotMatch(html.replace(ELEMENTS, ""), /[<>]/);
    for (const [, address = ""] of html.matchAll(/href="([^"]*)"/g)) assert.match(address, /^(?:https?:\/\/[^@]*|mailto:.*|tel:.*)$/);
  });
}

test("finished blocks keep their nodes while the rest grows", () => {
  const root = new Tag("div");
  const markdown = markdownIn(root);
  markdown.render("first\n\nsec", true);
  const [first] = root.children;
  markdown.render("first\n\nsecond\n\n- third", true);
  assert.equal(root.children[0], first);
  assert.equal(root.inner(), "<p>first</p><p>second</p><ul><li><p>third</p></li></ul>");
});

test("an address at the end is no link until it is whole", () => {
  const root = new Tag("div");
  const markdown = markdownIn(root);
  for (const part of ["see https://exam", "[a](https://exam", "![a](https://exam", "[a](https://example.org \"ti"]) {
    markdown.render(part, true);
    assert.doesNotMatch(root.inner(), /href/);
    assert.equal(root.inner().includes("https"), part.startsWith("see"), root.inner());
  }
});

test("a finished item of a list and a growing code keep their nodes", () => {
  const root = new Tag("div");
  const markdown = markdownIn(root);
  markdown.render("- first\n- sec", true);
  const first = root.children[0]?.children[0];
  markdown.render("- first\n- second\n- third\n\n```py\nx", true);
  assert.equal(root.children[0]?.children[0], first);
  const code = root.children[1];
  markdown.render("- first\n- second\n- third\n\n```py\nx = 1\ny", true);
  assert.equal(root.children[1], code);
  assert.equal(code?.inner(), "<code>x = 1\ny</code>");
});

test("what is not decided yet is held, what has begun is shown as it will be", () => {
  const shows = (text: string): string => {
    const root = new Tag("div");
    markdownIn(root).render(text, true);
    return root.inner();
  };
  for (const end of ["\n-", "\n1.", "\n##", "\n``", "\n| a | b", "\n| a | b |\n|--", "\n>"]) assert.equal(shows(`text${end}`), "<p>text</p>");
  assert.equal(shows("**bo"), "<p><strong>bo</strong></p>");
  assert.equal(shows("`co"), "<p><code>co</code></p>");
  assert.equal(shows("2 * 3 and *.txt"), "<p>2 * 3 and *.txt</p>");
});

test("an image is shown only where it may be", () => {
  const root = new Tag("div");
  const allowsImage = (address: string): boolean => address.startsWith("https://good.example/");
  const markdown = new MarkdownRenderer(root as unknown as HTMLElement, { wrapCode: (node) => node, allowsImage });
  markdown.render("![a *b*](https://good.example/1.png) ![c](https://bad.example/2.png)", false);
  assert.match(root.inner(), /^<p><img><\/img> <a href="https:\/\/bad.example\/2.png">c<\/a><\/p>$/);
});

test("long nonsense is read in little time", () => {
  const began = process.cpuUsage(); // not the clock, which other processes hold up
  const marks = ["[", "*a ", "`a", "> ", "- ", "_", "](", "![", "**a", "<", "1. ", "a_", "~~a ", "| ", "&#", "[a](", "|a\n"];
  for (const mark of marks) shown([mark.repeat(3000)]);
  const { user } = process.cpuUsage(began);
  assert.ok(user < 5_000_000, `${user} µs`);
});
