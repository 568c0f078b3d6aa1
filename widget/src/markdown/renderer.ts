/**
 * Renders streaming Markdown and rebuilds only changed blocks, which keeps the visitor's selection in the others.
 * Safe by construction: creates nodes from a fixed list of elements and never parses HTML.
 */
import { detach, element, link } from "../dom/elements.ts";
import { parseBlocks, type Block } from "./blocks.ts";
import { parseInline, type Inline } from "./inline.ts";
import type { Table } from "./table.ts";

interface MarkdownOptions {
  /** Wraps a code block, for instance in a frame with a copy button. */
  wrapCode(node: HTMLElement, language: string): HTMLElement;
  /** Whether an image may be fetched from this address. */
  allowsImage(address: string): boolean;
}

/** A rendered block; `key` changes with its source, and `inner` holds nested blocks. */
interface Rendered {
  key: string;
  node: HTMLElement;
  code?: HTMLElement;
  inner: Rendered[];
}

/** Matches a last line that may still become a list, a rule, a table or a fence. */
const AMBIGUOUS_END = /(?:^|\n) {0,3}(?:\|[^\n]*(?:\n[|:\- ]*)?|[-=*+#>~`|]+|\d{1,9}[.)]?) *$/;

export class MarkdownRenderer {
  #rendered: Rendered[] = [];

  constructor(
    readonly root: HTMLElement,
    readonly options: MarkdownOptions,
  ) {}

  /** Renders the whole text so far; while `streaming`, more will follow. */
  render(text: string, streaming: boolean): void {
    this.#rendered = this.#update(this.root, this.#rendered, parseBlocks(streaming ? text.replace(AMBIGUOUS_END, "") : text), streaming);
  }

  #update(parent: HTMLElement, rendered: Rendered[], blocks: Block[], streaming: boolean): Rendered[] {
    const next = blocks.map((block, at) => this.#block(rendered[at], block, streaming && at === blocks.length - 1));
    next.forEach(({ node }, at) => {
      if (node === rendered[at]?.node) return;
      if (rendered[at]) rendered[at].node.replaceWith(node);
      else parent.append(node);
    });
    for (const { node } of rendered.slice(next.length)) detach(node);
    return next;
  }

  /** Renders a block, reusing the previous node at its position if it is of the same kind. */
  #block(previous: Rendered | undefined, block: Block, streaming: boolean): Rendered {
    const key = `${streaming}${nodeKind(block)}\n${block.source}`;
    if (previous?.key === key) return previous;
    const reusable = previous?.key.replace(/^true|^false/, "").startsWith(`${nodeKind(block)}\n`) ? previous : undefined;
    switch (block.kind) {
      case "code": {
        const code = reusable?.code ?? element("code");
        code.textContent = block.text;
        const node = reusable?.node ?? this.options.wrapCode(element("pre", { tabindex: "0", dir: "ltr" }, code), block.language);
        return { key, node, code, inner: [] };
      }
      case "quote": {
        const node = reusable?.node ?? element("blockquote");
        return { key, node, inner: this.#update(node, reusable?.inner ?? [], block.children, streaming) };
      }
      case "list": {
        const ordered = block.start !== null;
        const node = reusable?.node ?? (ordered ? element("ol", { start: String(block.start) }) : element("ul"));
        return { key, node, inner: this.#items(node, reusable?.inner ?? [], block.items, streaming) };
      }
      default:
        return { key, node: this.#leaf(block, streaming), inner: [] };
    }
  }

  #items(list: HTMLElement, rendered: Rendered[], items: Block[][], streaming: boolean): Rendered[] {
    const next = items.map((blocks, at) => {
      const node = rendered[at]?.node ?? element("li");
      if (!rendered[at]) list.append(node);
      return { key: "", node, inner: this.#update(node, rendered[at]?.inner ?? [], blocks, streaming && at === items.length - 1) };
    });
    for (const { node } of rendered.slice(next.length)) detach(node);
    return next;
  }

  #leaf(block: Block, streaming: boolean): HTMLElement {
    if (block.kind === "table") return this.#table(block);
    if (block.kind === "heading") return element(`h${Math.min(6, block.level + 2)}`, {}, ...this.#inline(block.text, streaming));
    return block.kind === "paragraph" ? element("p", {}, ...this.#inline(block.text, streaming)) : element("hr");
  }

  /** Wraps a table in a box that scrolls if the table is wider than the reply. */
  #table({ head, rows, align }: Table): HTMLElement {
    const row = (name: "th" | "td", cells: string[]): HTMLElement => {
      const children = cells.map((cell, at) => {
        const node = element(name, align[at] ? { class: align[at] } : {}, ...this.#inline(cell, false));
        if (name === "th") node.setAttribute("scope", "col");
        return node;
      });
      return element("tr", {}, ...children);
    };
    const table = element("table", {}, element("thead", {}, row("th", head)));
    if (rows.length) table.append(element("tbody", {}, ...rows.map((cells) => row("td", cells))));
    return element("div", { class: "table", tabindex: "0" }, table);
  }

  #inline(text: string, streaming: boolean): Node[] {
    return parseInline(text, streaming).map((node) => this.#inlineNode(node));
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
        if (this.options.allowsImage(node.address)) return image(node.address, plainText(node.children));
    }
    const children = node.children.map((child) => this.#inlineNode(child));
    if (node.kind !== "link" && node.kind !== "image") return element(TAGS[node.kind], {}, ...children);
    return link(node.address, ...children);
  }
}

const TAGS = { strong: "strong", emphasis: "em", deleted: "del" } as const;

/** Returns the kind with what else the outermost node depends on; nodes are reused only within it. */
function nodeKind(block: Block): string {
  if (block.kind === "code") return `code ${block.language}`;
  return block.kind === "list" ? `list ${block.start}` : block.kind;
}

function image(src: string, alt: string): HTMLElement {
  return element("img", { alt, loading: "lazy", referrerpolicy: "no-referrer", src });
}

/** Flattens nodes to text, for an image's description. */
function plainText(nodes: Inline[]): string {
  return nodes.map((node) => ("text" in node ? node.text : "children" in node ? plainText(node.children) : " ")).join("");
}
