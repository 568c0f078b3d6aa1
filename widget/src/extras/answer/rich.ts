/** Builds the chunk for what only some answers have: tables, framed code, and sources with their passages. */
import type { Citation } from "../../conversation/turn.ts";
import { element, link } from "../../dom/elements.ts";
import type { MarkdownExtension } from "../../markdown/renderer.ts";
import { parseTable, startsTable } from "../../markdown/table.ts";
import type { Surroundings } from "../../chunks/contract.ts";
import { copyButton } from "./copy-button.ts";
import style from "./rich.css";
import { tableNode } from "./table-node.ts";

export { style };

/** Supplies the Markdown renderer with tables and with frames around code. */
export function markdown(surroundings: Surroundings): MarkdownExtension {
  const { texts } = surroundings;
  return {
    startsTable,
    parseTable,
    table: (table, inline) => scrollBox(element("div", { class: "table" }, tableNode(table, inline)), texts.table),
    wrapCode: (pre, language) => {
      const copy = copyButton(surroundings, texts.copyCode, () => pre.textContent ?? "");
      const name = [texts.codeBlock, language].filter(Boolean).join(" ");
      return element("div", { class: "code" }, element("div", { class: "bar" }, element("span", {}, language), copy), scrollBox(pre, name));
    },
  };
}

/** Lists sources as links, each with its passage in a disclosure. */
export function sourceList(citations: Citation[], { texts, followEnd }: Surroundings): HTMLElement {
  const items = citations.map(({ title, address, passage }) => {
    const item = element("li", {}, link(address, title));
    if (passage) {
      const name = `${texts.passage}: ${title}`;
      const quote = scrollBox(element("blockquote", { dir: "auto" }, passage), name);
      const details = element("details", {}, element("summary", { "aria-label": name }, texts.passage), quote);
      details.ontoggle = followEnd;
      item.append(details);
    }
    return item;
  });
  return element("div", { class: "sources" }, element("p", {}, texts.sources), element("ol", { "aria-label": texts.sources }, ...items));
}

/** Makes `node` a named region with a tab stop while its content is wider or higher than itself. */
function scrollBox<Box extends HTMLElement>(node: Box, name: string): Box {
  if (typeof ResizeObserver === "undefined") return node;
  const update = (): void => {
    const scrolls = node.scrollWidth > node.clientWidth || node.scrollHeight > node.clientHeight;
    if (scrolls === node.hasAttribute("tabindex")) return;
    for (const [key, value] of [["tabindex", "0"], ["role", "region"], ["aria-label", name]] as const) {
      if (scrolls) node.setAttribute(key, value);
      else node.removeAttribute(key);
    }
  };
  const observer = new ResizeObserver(update);
  observer.observe(node);
  if (node.firstElementChild) observer.observe(node.firstElementChild);
  return node;
}
