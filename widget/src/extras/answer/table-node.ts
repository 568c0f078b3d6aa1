/** Builds a table from its parsed cells. */
import { element } from "../../dom/elements.ts";
import type { Table } from "../../markdown/table.ts";

/** Creates the table with a header row; `inline` renders the text of a cell. */
export function tableNode({ head, rows, align }: Table, inline: (text: string) => Node[]): HTMLElement {
  const row = (name: "th" | "td", cells: string[]): HTMLElement => {
    const children = cells.map((cell, at) => {
      const node = element(name, align[at] ? { class: align[at] } : {}, ...inline(cell));
      if (name === "th") node.setAttribute("scope", "col");
      return node;
    });
    return element("tr", {}, ...children);
  };
  const table = element("table", {}, element("thead", {}, row("th", head)));
  if (rows.length) table.append(element("tbody", {}, ...rows.map((cells) => row("td", cells))));
  return table;
}
