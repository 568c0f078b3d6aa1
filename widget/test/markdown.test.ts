import assert from "node:assert/strict";
import { test } from "node:test";
import MarkdownIt from "markdown-it";
import { Markdown } from "../src/markdown.ts";
import { ATTACKS, SNIPPETS } from "./corpus.ts";
import { install, Tag } from "./document.ts";

install();

function shown(chunks: string[]): string {
  const root = new Tag("div");
  const markdown = new Markdown(root as unknown as HTMLElement);
  let text = "";
  for (const chunk of chunks) markdown.show((text += chunk), true);
  markdown.show(text, false);
  return root.inner();
}

/** markdown-it, told of our four choices: no tight lists, breaks are kept, h1 is h3, images are links. */
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
  }
  return reference.renderer.render(tokens, reference.options, {});
}

/** Without the differences that no reader sees: white space between blocks, titles, the final slash of an address. */
function normal(html: string): string {
  return html
    .replace(/ title="[^"]*"/g, "")
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
    for (let cut = 1; cut < text.length; cut += size * 3) assert.equal(shown([text.slice(0, cut), text.slice(cut)]), whole);
  });
}

const ELEMENTS = /<\/?(?:p|h3|h4|h5|h6|ul|li|pre|code|blockquote|hr|br|strong|em|a|ol)(?: (?:start|href)="[^"<>]*")?>/g;

for (const attack of ATTACKS) {
  test(`harmless: ${JSON.stringify(attack)}`, () => {
    const html = shown([attack]);
    assert.doesNotMatch(html.replace(ELEMENTS, ""), /[<>]/);
    for (const [, address = ""] of html.matchAll(/href="([^"]*)"/g)) assert.match(address, /^(?:https?:\/\/[^@]*|mailto:.*|tel:.*)$/);
  });
}

test("finished blocks keep their nodes while the rest grows", () => {
  const root = new Tag("div");
  const markdown = new Markdown(root as unknown as HTMLElement);
  markdown.show("first\n\nsec", true);
  const [first] = root.children;
  markdown.show("first\n\nsecond\n\n- third", true);
  assert.equal(root.children[0], first);
  assert.equal(root.inner(), "<p>first</p><p>second</p><ul><li><p>third</p></li></ul>");
});

test("an address at the end is no link until it is whole", () => {
  const root = new Tag("div");
  const markdown = new Markdown(root as unknown as HTMLElement);
  for (const part of ["see https://exam", "[a](https://exam"]) {
    markdown.show(part, true);
    assert.doesNotMatch(root.inner(), /href/);
  }
});

test("long nonsense is read in little time", () => {
  const began = performance.now();
  for (const mark of ["[", "*a ", "`a", "> ", "- ", "_", "](", "![", "**a", "<", "1. ", "a_"]) shown([mark.repeat(3000)]);
  assert.ok(performance.now() - began < 3000, `${performance.now() - began} ms`);
});
