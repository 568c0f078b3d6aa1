/**
 * Shows growing Markdown as DOM: only what changed is made anew, so a selection in finished text stays.
 * Nodes are made one by one from a fixed list of elements; no string ever becomes HTML.
 */
import { parseBlocks, type Block } from "./blocks.ts";
import { anchor, drop, element } from "../dom/elements.ts";
import { parseInline, type Inline } from "./inline.ts";
import type { Table } from "./table.ts";

/** What the page that shows it decides: the frame around code, and whether an image may be fetched. */
export interface Surroundings {
  code(node: HTMLElement, language: string): HTMLElement;
  image(address: string): boolean;
}

/** One block on the screen: what it was made from, and the blocks within it. */
interface Shown {
  key: string;
  node: HTMLElement;
  code?: HTMLElement;
  inner: Shown[];
}

/** The beginning of a line that may still become a list, a rule, a table or a fence. */
const UNDECIDED = /(?:^|\n) {0,3}(?:\|[^\n]*(?:\n[|:\- ]*)?|[-=*+#>~`|]+|\d{1,9}[.)]?) *$/;

export class Markdown {
  #shown: Shown[] = [];

  constructor(
    readonly root: HTMLElement,
    readonly around: Surroundings,
  ) {}

  /** Show the whole text so far; `open` says that more will come. */
  show(text: string, open: boolean): void {
    this.#shown = this.#update(this.root, this.#shown, parseBlocks(open ? text.replace(UNDECIDED, "") : text), open);
  }

  #update(parent: HTMLElement, shown: Shown[], blocks: Block[], open: boolean): Shown[] {
    const next = blocks.map((block, at) => this.#one(shown[at], block, open && at === blocks.length - 1));
    next.forEach(({ node }, at) => {
      if (node === shown[at]?.node) return;
      if (shown[at]) shown[at].node.replaceWith(node);
      else parent.append(node);
    });
    for (const { node } of shown.slice(next.length)) drop(node);
    return next;
  }

  /** The block, shown by what stood in its place if that is of its kind. */
  #one(was: Shown | undefined, block: Block, open: boolean): Shown {
    const key = `${open}${kindOf(block)}\n${block.source}`;
    if (was?.key === key) return was;
    const alike = was?.key.replace(/^true|^false/, "").startsWith(`${kindOf(block)}\n`) ? was : undefined;
    switch (block.kind) {
      case "code": {
        const code = alike?.code ?? element("code");
        code.textContent = block.text;
        const node = alike?.node ?? this.around.code(element("pre", { tabindex: "0", dir: "ltr" }, code), block.language);
        return { key, node, code, inner: [] };
      }
      case "quote": {
        const node = alike?.node ?? element("blockquote");
        return { key, node, inner: this.#update(node, alike?.inner ?? [], block.children, open) };
      }
      case "list": {
        const ordered = block.start !== null;
        const node = alike?.node ?? (ordered ? element("ol", { start: String(block.start) }) : element("ul"));
        return { key, node, inner: this.#items(node, alike?.inner ?? [], block.items, open) };
      }
      default:
        return { key, node: this.#leaf(block, open), inner: [] };
    }
  }

  #items(list: HTMLElement, shown: Shown[], items: Block[][], open: boolean): Shown[] {
    const next = items.map((blocks, at) => {
      const node = shown[at]?.node ?? element("li");
      if (!shown[at]) list.append(node);
      return { key: "", node, inner: this.#update(node, shown[at]?.inner ?? [], blocks, open && at === items.length - 1) };
    });
    for (const { node } of shown.slice(next.length)) drop(node);
    return next;
  }

  #leaf(block: Block, open: boolean): HTMLElement {
    if (block.kind === "table") return this.#table(block);
    if (block.kind === "heading") return element(`h${Math.min(6, block.level + 2)}`, {}, ...this.#inline(block.text, open));
    return block.kind === "paragraph" ? element("p", {}, ...this.#inline(block.text, open)) : element("hr");
  }

  /** In a box of its own, which scrolls where the table is wider than the answer. */
  #table({ head, rows, align }: Table): HTMLElement {
    const row = (name: "th" | "td", cells: string[]): HTMLElement => {
      const made = cells.map((cell, at) => {
        const node = element(name, align[at] ? { class: align[at] } : {}, ...this.#inline(cell, false));
        if (name === "th") node.setAttribute("scope", "col");
        return node;
      });
      return element("tr", {}, ...made);
    };
    const table = element("table", {}, element("thead", {}, row("th", head)));
    if (rows.length) table.append(element("tbody", {}, ...rows.map((cells) => row("td", cells))));
    return element("div", { class: "table", tabindex: "0" }, table);
  }

  #inline(text: string, open: boolean): Node[] {
    return parseInline(text, open).map((node) => this.#inlineNode(node));
  }

  #inlineNode(node: Inline): Node {
    switch (node.kind) {
      case "text":
        return new Text(node.text);
      case "code":
        return element("code", {}, node.text);
      case "break":
        return element("br");
      case "image":
        if (this.around.image(node.address)) return image(node.address, plain(node.children));
    }
    const children = node.children.map((child) => this.#inlineNode(child));
    if (node.kind !== "link" && node.kind !== "image") return element(NAMES[node.kind], {}, ...children);
    return anchor(node.address, ...children);
  }
}

const NAMES = { strong: "strong", emphasis: "em", deleted: "del" } as const;

/** The kind of a block, with all that its outermost node depends on. */
function kindOf(block: Block): string {
  if (block.kind === "code") return `code ${block.language}`;
  return block.kind === "list" ? `list ${block.start}` : block.kind;
}

function image(src: string, alt: string): HTMLElement {
  return element("img", { alt, loading: "lazy", referrerpolicy: "no-referrer", src });
}

/** The text of an image's description. */
function plain(nodes: Inline[]): string {
  return nodes.map((node) => ("text" in node ? node.text : "children" in node ? plain(node.children) : " ")).join("");
}
