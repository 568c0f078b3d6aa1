/**
 * Markdown within a block: text -> a tree of emphasis, code, links, images and breaks, as CommonMark reads them.
 * Pure data: a link or an image whose address is not allowed becomes its text.
 */
import { allowed } from "../dom/address.ts";
import { emphasise, run, type Run } from "./emphasis.ts";

export type Inline =
  | { kind: "text" | "code"; text: string }
  | { kind: "break" }
  | { kind: "strong" | "emphasis" | "deleted"; children: Inline[] }
  | { kind: "link" | "image"; address: string; children: Inline[] };

const ESCAPE = /\\([!-/:-@[-`{-~])/y;
const CODE = /(?<!`)(`+)(?!`)([^]*?[^`])\1(?!`)/y;
const ENTITY = /&(?:#(\d{1,7})|#x([\da-f]{1,6})|([a-z]{2,6}));/gi;
const NAMED = new Map(Object.entries({ amp: "&", lt: "<", gt: ">", quot: '"', apos: "'", nbsp: "\u00a0" }));
const UNFINISHED = /`([^`\n]+)$/y;
const DELETED = /(?<!~)~~(?=[^\s~])((?:[^~]|~(?!~))*[^\s~])~~(?!~)/y;
const BREAK = /(?:\\| *)\n */y;
const ANGLE = /<((?:https?|mailto|tel):[^\s<>]*)>/iy;
const BARE = /(?<![\w/])https?:\/\/[^\s<>"`*\\]+/iy;
const RUN = /\*+|_+/y;
const PLAIN = /[^\\`<[!*_~\nhH]+|[^]/y;
const TARGET = /\(\s*(?:<([^<>\n]*)>|((?:[^\s()\\]|\\.|\((?:[^\s()\\]|\\.)*\))*))(?:\s+(?:"[^"]*"|'[^']*'))?\s*\)/y;
const LONGEST_LABEL = 1000;

/** Parse one block's text; with `open` it is still growing: what has begun at its end is shown as it will be. */
export function parseInline(text: string, open = false, links = true): Inline[] {
  const nodes: (Inline | Run)[] = [];
  for (let at = 0; at < text.length; ) {
    const [found, end] = next(text, at, open, links);
    nodes.push(...found);
    at = end;
  }
  return emphasise(nodes, open);
}

/** What stands in the text at this place, and where it ends. */
function next(text: string, at: number, open: boolean, links: boolean): [(Inline | Run)[], number] {
  const match = (pattern: RegExp): RegExpExecArray | null => {
    pattern.lastIndex = at;
    return pattern.exec(text);
  };
  let found;
  if ((found = match(ESCAPE))) return [plain(found[1]), at + 2];
  if ((found = match(CODE))) return [[{ kind: "code", text: unpadded(found[2] ?? "") }], CODE.lastIndex];
  if (match(BREAK)) return [[{ kind: "break" }], BREAK.lastIndex];
  if ((found = match(ANGLE))) return [link(found[1] ?? "", plain(found[1]), links), ANGLE.lastIndex];
  if ((found = match(RUN))) return [[run(found[0], text, at)], RUN.lastIndex];
  if ((found = match(DELETED))) {
    const end = DELETED.lastIndex; // parsing what it holds moves it
    return [[{ kind: "deleted", children: parseInline(found[1] ?? "", false, links) }], end];
  }
  if ((found = match(BARE))) {
    const address = withoutSentenceEnd(found[0]);
    return [link(address, plain(address), links && !(open && BARE.lastIndex === text.length)), at + address.length];
  }
  if (open && (found = match(UNFINISHED))) return [[{ kind: "code", text: found[1] ?? "" }], text.length];
  return bracketed(text, at, open, links) ?? [plain(decoded(match(PLAIN)?.[0])), PLAIN.lastIndex];
}

/** `[text](address)` or `![text](address)` at this place. */
function bracketed(text: string, at: number, open: boolean, links: boolean): [Inline[], number] | null {
  const image = text.startsWith("![", at);
  const from = image ? at + 2 : at + 1;
  if (text[from - 1] !== "[") return null;
  const close = closing(text, from);
  if (close < 0) return null;
  TARGET.lastIndex = close + 1;
  const found = TARGET.exec(text);
  // An address that is still being written: only its text is shown until it is whole.
  const held = open && !found && /^\([^)\n]*$/.test(text.slice(close + 1));
  if (!found && !held) return null;
  const end = found ? TARGET.lastIndex : text.length;
  const address = decoded((found?.[1] ?? found?.[2] ?? "").replace(/\\([!-/:-@[-`{-~])/g, "$1"));
  const label = text.slice(from, close).trim() || address;
  return [link(address, parseInline(label, false, false), links, image), end];
}

/** Where the bracket that opened before `from` closes, or -1. */
function closing(text: string, from: number): number {
  const end = Math.min(text.length, from + LONGEST_LABEL);
  for (let depth = 1, at = from; at < end; at++) {
    if (text[at] === "\\") at++;
    else if (text[at] === "[") depth++;
    else if (text[at] === "]" && --depth === 0) return at;
  }
  return -1;
}

function link(address: string, children: Inline[], links: boolean, image = false): Inline[] {
  const safe = links ? allowed(address) : "";
  return safe ? [{ kind: image ? "image" : "link", address: safe, children }] : children;
}

/** Text with its entities replaced by what they stand for. */
function decoded(text = ""): string {
  return text.replace(ENTITY, (entity, decimal, hexadecimal, name) => {
    if (name) return NAMED.get(name) ?? entity;
    const code = decimal ? parseInt(decimal, 10) : parseInt(hexadecimal, 16);
    return code && code < 0x110000 && (code < 0xd800 || code > 0xdfff) ? String.fromCodePoint(code) : "\ufffd";
  });
}

function plain(text = ""): Inline[] {
  return [{ kind: "text", text }];
}

/** The punctuation after a bare address belongs to the sentence, and so does a bracket that it did not open. */
function withoutSentenceEnd(address: string): string {
  const shorter = address.replace(/[?!.,:;'_~]+$/, "");
  if (!shorter.endsWith(")") || shorter.split("(").length >= shorter.split(")").length) return shorter;
  return withoutSentenceEnd(shorter.slice(0, -1));
}

/** Code loses one space on either side if it has both, so that it can begin with a backtick. */
function unpadded(code: string): string {
  const line = code.replace(/\n/g, " ");
  return /^ .*[^ ].* $/.test(line) || /^ [^ ]+ $/.test(line) ? line.slice(1, -1) : line;
}
