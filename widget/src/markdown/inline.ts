/** Parses the inline Markdown of a block into data; links and images with unsafe addresses become their text. */
import { safeAddress } from "../dom/address.ts";
import { delimiterRun, resolveEmphasis, type DelimiterRun } from "./emphasis.ts";

export type Inline =
  | { kind: "text" | "code"; text: string }
  | { kind: "break" }
  | { kind: "strong" | "emphasis" | "deleted"; children: Inline[] }
  | { kind: "link" | "image"; address: string; children: Inline[] };

const ESCAPE = /\\([!-/:-@[-`{-~])/y;
const CODE_SPAN = /(?<!`)(`+)(?!`)([^]*?[^`])\1(?!`)/y;
const ENTITY = /&(?:#(\d{1,7})|#x([\da-f]{1,6})|([a-z]{2,6}));/gi;
const NAMED_ENTITIES = new Map(Object.entries({ amp: "&", lt: "<", gt: ">", quot: '"', apos: "'", nbsp: "\u00a0" }));
const UNCLOSED_CODE = /`([^`\n]+)$/y;
const DELETED = /(?<!~)~~(?=[^\s~])((?:[^~]|~(?!~))*[^\s~])~~(?!~)/y;
const BREAK = /(?:\\| *)\n */y;
const AUTOLINK = /<((?:https?|mailto|tel):[^\s<>]*)>/iy;
const BARE_URL = /(?<![\w/])https?:\/\/[^\s<>"`*\\]+/iy;
const DELIMITERS = /\*+|_+/y;
const PLAIN = /[^\\`<[!*_~\nhH]+|[^]/y;
const LINK_TARGET = /\(\s*(?:<([^<>\n]*)>|((?:[^\s()\\]|\\.|\((?:[^\s()\\]|\\.)*\))*))(?:\s+(?:"[^"]*"|'[^']*'))?\s*\)/y;
const MAX_LABEL_LENGTH = 1000;

/** Parses one block's text; while `streaming`, what is unclosed at its end is read as if it were closed. */
export function parseInline(text: string, streaming = false, links = true): Inline[] {
  const nodes: (Inline | DelimiterRun)[] = [];
  for (let at = 0; at < text.length; ) {
    const [found, end] = parseAt(text, at, streaming, links);
    nodes.push(...found);
    at = end;
  }
  return resolveEmphasis(nodes, streaming);
}

/** Parses the construct at this offset; returns its nodes and its end. */
function parseAt(text: string, at: number, streaming: boolean, links: boolean): [(Inline | DelimiterRun)[], number] {
  const match = (pattern: RegExp): RegExpExecArray | null => {
    pattern.lastIndex = at;
    return pattern.exec(text);
  };
  let found;
  if ((found = match(ESCAPE))) return [textNodes(found[1]), at + 2];
  if ((found = match(CODE_SPAN))) return [[{ kind: "code", text: stripPadding(found[2] ?? "") }], CODE_SPAN.lastIndex];
  if (match(BREAK)) return [[{ kind: "break" }], BREAK.lastIndex];
  if ((found = match(AUTOLINK))) return [linkNodes(found[1] ?? "", textNodes(found[1]), links), AUTOLINK.lastIndex];
  if ((found = match(DELIMITERS))) return [[delimiterRun(found[0], text, at)], DELIMITERS.lastIndex];
  if ((found = match(DELETED))) {
    const end = DELETED.lastIndex; // the nested parse moves it
    return [[{ kind: "deleted", children: parseInline(found[1] ?? "", false, links) }], end];
  }
  if ((found = match(BARE_URL))) {
    const address = trimSentenceEnd(found[0]);
    return [linkNodes(address, textNodes(address), links && !(streaming && BARE_URL.lastIndex === text.length)), at + address.length];
  }
  if (streaming && (found = match(UNCLOSED_CODE))) return [[{ kind: "code", text: found[1] ?? "" }], text.length];
  return parseBracketed(text, at, streaming, links) ?? [textNodes(decodeEntities(match(PLAIN)?.[0])), PLAIN.lastIndex];
}

/** Parses `[text](address)` or `![text](address)` at this offset; null if there is none. */
function parseBracketed(text: string, at: number, streaming: boolean, links: boolean): [Inline[], number] | null {
  const image = text.startsWith("![", at);
  const from = image ? at + 2 : at + 1;
  if (text[from - 1] !== "[") return null;
  const close = findClosingBracket(text, from);
  if (close < 0) return null;
  LINK_TARGET.lastIndex = close + 1;
  const found = LINK_TARGET.exec(text);
  // Shows only the text while the address is incomplete.
  const incomplete = streaming && !found && /^\([^)\n]*$/.test(text.slice(close + 1));
  if (!found && !incomplete) return null;
  const end = found ? LINK_TARGET.lastIndex : text.length;
  const address = decodeEntities((found?.[1] ?? found?.[2] ?? "").replace(/\\([!-/:-@[-`{-~])/g, "$1"));
  const label = text.slice(from, close).trim() || address;
  return [linkNodes(address, parseInline(label, false, false), links, image), end];
}

/** Finds the bracket that closes the one before `from`; -1 if there is none within the maximum length. */
function findClosingBracket(text: string, from: number): number {
  const end = Math.min(text.length, from + MAX_LABEL_LENGTH);
  for (let depth = 1, at = from; at < end; at++) {
    if (text[at] === "\\") at++;
    else if (text[at] === "[") depth++;
    else if (text[at] === "]" && --depth === 0) return at;
  }
  return -1;
}

/** Returns a link or an image, or its children alone if the address is unsafe. */
function linkNodes(address: string, children: Inline[], links: boolean, image = false): Inline[] {
  const safe = links ? safeAddress(address) : "";
  return safe ? [{ kind: image ? "image" : "link", address: safe, children }] : children;
}

/** Decodes numeric entities and the common named ones. */
function decodeEntities(text = ""): string {
  return text.replace(ENTITY, (entity, decimal, hexadecimal, name) => {
    if (name) return NAMED_ENTITIES.get(name) ?? entity;
    const code = decimal ? parseInt(decimal, 10) : parseInt(hexadecimal, 16);
    return code && code < 0x110000 && (code < 0xd800 || code > 0xdfff) ? String.fromCodePoint(code) : "\ufffd";
  });
}

function textNodes(text = ""): Inline[] {
  return [{ kind: "text", text }];
}

/** Trims the punctuation that ends the sentence from a bare URL, including a bracket that the URL did not open. */
function trimSentenceEnd(address: string): string {
  const shorter = address.replace(/[?!.,:;'_~]+$/, "");
  if (!shorter.endsWith(")") || shorter.split("(").length >= shorter.split(")").length) return shorter;
  return trimSentenceEnd(shorter.slice(0, -1));
}

/** Strips one space from each side of a code span if it has both; they let code start with a backtick. */
function stripPadding(code: string): string {
  const line = code.replace(/\n/g, " ");
  return /^ .*[^ ].* $/.test(line) || /^ [^ ]+ $/.test(line) ? line.slice(1, -1) : line;
}
