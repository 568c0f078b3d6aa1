/** Parses Markdown into block data. Always reads the whole text, so how it was chunked cannot change the result. */
import type { Table } from "./table.ts";

/** Parses tables, which the app loads on first use. */
export interface TableParser {
  /** Whether a table starts at this line. */
  startsTable(lines: string[], at: number): boolean;
  /** Parses the table at this line; returns it with the next line. A line that `interrupts` ends it. */
  parseTable(lines: string[], at: number, interrupts: (line: string) => boolean): [Table, number];
}

/** A block with the lines it was parsed from. */
export type Block = { source: string } & (
  | { kind: "paragraph"; text: string }
  | { kind: "heading"; level: number; text: string }
  | { kind: "code"; language: string; text: string }
  | Table
  | { kind: "list"; start: number | null; items: Block[][] }
  | { kind: "quote"; children: Block[] }
  | { kind: "rule" }
);

const FENCE = /^ {0,3}(`{3,}|~{3,})([^`]*)$/;
const HEADING = /^ {0,3}(#{1,6})(?:\s+(.*?))?(?:\s+#+)?\s*$/;
const SETEXT_UNDERLINE = /^ {0,3}(=+|-+)\s*$/;
const RULE = /^ {0,3}(?:(?:\* *){3,}|(?:- *){3,}|(?:_ *){3,})$/;
const ITEM = /^( {0,3})([-*+]|\d{1,9}[.)])(?:([ \t]+)(.*)|$)/;
const QUOTE = /^ {0,3}> ?/;
const MAX_DEPTH = 8;

/** Parses all blocks; lists and quotes nested too deep stay paragraphs, and tables without a parser too. */
export function parseBlocks(text: string, tables?: TableParser, depth = 0): Block[] {
  const lines = text.split("\n");
  const blocks: Block[] = [];
  for (let at = 0; at < lines.length; ) {
    if (!lines[at]?.trim()) {
      at++;
      continue;
    }
    const [block, end] = parseBlock(lines, at, tables, depth);
    blocks.push({ ...block, source: lines.slice(at, end).join("\n") });
    at = end;
  }
  return blocks;
}

/** A block and the line after it. */
type Parsed = [block: Block, end: number];

function parseBlock(lines: string[], at: number, tables: TableParser | undefined, depth: number): Parsed {
  const line = lines[at] ?? "";
  const heading = HEADING.exec(line);
  if (heading) {
    return [{ source: "", kind: "heading", level: heading[1]?.length ?? 1, text: heading[2] ?? "" }, at + 1];
  }
  if (FENCE.test(line)) return parseCode(lines, at);
  if (tables?.startsTable(lines, at)) {
    const [found, end] = tables.parseTable(lines, at, interruptsParagraph);
    return [{ source: "", ...found }, end];
  }
  if (RULE.test(line)) return [{ source: "", kind: "rule" }, at + 1];
  if (depth < MAX_DEPTH && QUOTE.test(line)) return parseQuote(lines, at, tables, depth);
  if (depth < MAX_DEPTH && ITEM.test(line)) return parseList(lines, at, tables, depth);
  return parseParagraph(lines, at, tables, depth);
}

/** Parses fenced code up to its closing fence, or to the end while the reply streams. */
function parseCode(lines: string[], at: number): Parsed {
  const [, fence = "", info = ""] = FENCE.exec(lines[at] ?? "") ?? [];
  const indent = (lines[at] ?? "").indexOf(fence);
  const closes = (line: string): boolean => line.trim().startsWith(fence) && !line.trim().replaceAll(fence[0] ?? "", "");
  let end = at + 1;
  while (end < lines.length && !closes(lines[end] ?? "")) end++;
  const body = lines.slice(at + 1, end).map((line) => outdent(line, indent));
  const language = info.trim().split(/\s/, 1)[0] ?? "";
  return [{ source: "", kind: "code", language, text: body.join("\n") }, Math.min(lines.length, end + 1)];
}

function parseQuote(lines: string[], at: number, tables: TableParser | undefined, depth: number): Parsed {
  let end = at;
  while (end < lines.length && QUOTE.test(lines[end] ?? "")) end++;
  const inner = lines.slice(at, end).map((line) => line.replace(QUOTE, ""));
  return [{ source: "", kind: "quote", children: parseBlocks(inner.join("\n"), tables, depth + 1) }, end];
}

/** Parses consecutive items with the same marker; blank lines between them do not end the list. */
function parseList(lines: string[], at: number, tables: TableParser | undefined, depth: number): Parsed {
  const first = ITEM.exec(lines[at] ?? "");
  const marker = first?.[2]?.at(-1) ?? "";
  const start = marker === "." || marker === ")" ? parseInt(first?.[2] ?? "1", 10) : null;
  const items: Block[][] = [];
  let end = at;
  for (;;) {
    const next = skipBlankLines(lines, end);
    const found = ITEM.exec(lines[next] ?? "");
    if (found?.[2]?.at(-1) !== marker || RULE.test(lines[next] ?? "")) break;
    const [text, after] = readItem(lines, next, found);
    items.push(parseBlocks(text, tables, depth + 1));
    end = after;
  }
  return [{ source: "", kind: "list", start, items }, end];
}

/** Reads an item's text without its indentation; returns it with the next line. */
function readItem(lines: string[], at: number, found: RegExpExecArray): [string, number] {
  const [, before = "", marker = "", spaces = " ", rest = ""] = found;
  const indent = before.length + marker.length + (spaces.length > 4 ? 1 : spaces.length);
  const inside = (line: string): boolean => indentation(line) >= Math.min(indent, before.length + 2);
  const text = [rest];
  let end = at + 1;
  for (;;) {
    const next = skipBlankLines(lines, end);
    const line = lines[next] ?? "";
    const lazy = next === end && !interruptsParagraph(line) && !ITEM.test(line) && text.at(-1) !== "";
    if (next >= lines.length || !(inside(line) || lazy)) break;
    text.push(...lines.slice(end, next), outdent(line, indent));
    end = next + 1;
  }
  return [text.join("\n"), end];
}

function parseParagraph(lines: string[], at: number, tables: TableParser | undefined, depth: number): Parsed {
  const stops = (line: string): boolean => SETEXT_UNDERLINE.test(line) || (depth < MAX_DEPTH && interruptsParagraph(line));
  let end = at + 1;
  while (lines[end]?.trim() && !stops(lines[end] ?? "") && !tables?.startsTable(lines, end)) end++;
  const text = lines.slice(at, end).map((line) => line.trim()).join("\n");
  const underline = SETEXT_UNDERLINE.exec(lines[end] ?? "")?.[1];
  if (underline) return [{ source: "", kind: "heading", level: underline[0] === "=" ? 1 : 2, text }, end + 1];
  return [{ source: "", kind: "paragraph", text }, end];
}

/** Whether a line may interrupt a paragraph; in CommonMark a numbered list does so only from 1. */
function interruptsParagraph(line: string): boolean {
  const numbered = /^ *\d/.test(line) && !/^ *1[.)]/.test(line);
  return [HEADING, FENCE, RULE, QUOTE].some((pattern) => pattern.test(line)) || (ITEM.test(line) && !numbered);
}

function skipBlankLines(lines: string[], at: number): number {
  while (at < lines.length && !lines[at]?.trim()) at++;
  return at;
}

/** Measures indentation in columns; models use a tab for four. */
function indentation(line: string): number {
  return line.replace(/\t/g, "    ").search(/[^ ]/);
}

function outdent(line: string, columns: number): string {
  return columns ? line.replace(new RegExp(`^(?:\\t| {1,${columns}})`), "") : line;
}
