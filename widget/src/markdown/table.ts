/** Markdown's tables, as GitHub has them: a row of heads, a row of dashes with as many cells, and rows until a blank line. */
export type Align = "" | "left" | "center" | "right";

export interface Table {
  kind: "table";
  align: Align[];
  head: string[];
  rows: string[][];
}

const DASHES = /^(?! {0,3}-\s) {0,3}\|?\s*:?-+:?\s*(?:\|\s*:?-+:?\s*)*\|?\s*$/;

/** Whether a table begins at this line. */
export function tableAt(lines: string[], at: number): boolean {
  const head = lines[at] ?? "";
  const dashes = lines[at + 1] ?? "";
  return head.includes("|") && DASHES.test(dashes) && dashes.includes("|") && cells(head).length === cells(dashes).length;
}

/** The table that begins at this line, and the line after it; `ends` says which lines end it besides a blank one. */
export function table(lines: string[], at: number, ends: (line: string) => boolean): [Table, number] {
  const head = cells(lines[at] ?? "");
  const align = cells(lines[at + 1] ?? "").map(alignment);
  const rows = [];
  let end = at + 2;
  for (; lines[end]?.trim() && !ends(lines[end] ?? ""); end++) {
    const row = cells(lines[end] ?? "");
    rows.push(head.map((_, column) => row[column] ?? ""));
  }
  return [{ kind: "table", align, head, rows }, end];
}

function alignment(dashes: string): Align {
  const right = dashes.endsWith(":");
  if (dashes.startsWith(":")) return right ? "center" : "left";
  return right ? "right" : "";
}

/** A row's cells; an escaped bar is text. */
function cells(line: string): string[] {
  const row = line.trim().replace(/^\|/, "").replace(/(?<!\\)\|$/, "");
  return row.split(/(?<!\\)\|/).map((cell) => cell.trim().replaceAll("\\|", "|"));
}
