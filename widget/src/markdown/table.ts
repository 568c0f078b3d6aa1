/** Parses the tables of GitHub Flavored Markdown. */
type Align = "" | "left" | "center" | "right";

export interface Table {
  kind: "table";
  align: Align[];
  head: string[];
  rows: string[][];
}

const DELIMITER_ROW = /^(?! {0,3}-\s) {0,3}\|?\s*:?-+:?\s*(?:\|\s*:?-+:?\s*)*\|?\s*$/;

/** Whether a table starts at this line: a header row above a delimiter row of as many cells. */
export function startsTable(lines: string[], at: number): boolean {
  const head = lines[at] ?? "";
  const dashes = lines[at + 1] ?? "";
  return head.includes("|") && DELIMITER_ROW.test(dashes) && dashes.includes("|") && splitCells(head).length === splitCells(dashes).length;
}

/** Parses the table at this line; returns it with the next line. A blank line or one that `interrupts` ends it. */
export function parseTable(lines: string[], at: number, interrupts: (line: string) => boolean): [Table, number] {
  const head = splitCells(lines[at] ?? "");
  const align = splitCells(lines[at + 1] ?? "").map(parseAlignment);
  const rows = [];
  let end = at + 2;
  for (; lines[end]?.trim() && !interrupts(lines[end] ?? ""); end++) {
    const row = splitCells(lines[end] ?? "");
    rows.push(head.map((_, column) => row[column] ?? ""));
  }
  return [{ kind: "table", align, head, rows }, end];
}

function parseAlignment(dashes: string): Align {
  const right = dashes.endsWith(":");
  if (dashes.startsWith(":")) return right ? "center" : "left";
  return right ? "right" : "";
}

/** Splits a row at its unescaped pipes. */
function splitCells(line: string): string[] {
  const row = line.trim().replace(/^\|/, "").replace(/(?<!\\)\|$/, "");
  return row.split(/(?<!\\)\|/).map((cell) => cell.trim().replaceAll("\\|", "|"));
}
