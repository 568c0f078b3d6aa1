/**
 * Renders streaming Markdown and rebuilds only changed blocks, which keeps the visitor's selection in the others.
 * Safe by construction: creates nodes from a fixed list of elements and never parses HTML.
 */
import { detach, element, link } from "../dom/elements.ts";
import { withoutBidiControls } from "../dom/text.ts";
import { parseBlocks, type Block, type TableParser } from "./blocks.ts";
import { parseInline, type Inline } from "./inline.ts";
import type { Table } from "./table.ts";

/** Tables and frames around code, which the app loads on first use. */
export interface MarkdownExtension extends TableParser {
  table(table: Table, inline: (text: string) => Node[]): HTMLElement;
  /** Wraps a code block, for instance in a frame with a copy button. */
  wrapCode(node: HTMLElement, language: string): HTMLElement;
}

interface MarkdownOptions {
  /** Whether an image may be fetched from this address. */
  allowsImage(address: string): boolean;
  /** Called for a text with code or a table while there is no extension. */
  needsExtension(): void;
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
/** Matches a fence, or a line that may be the delimiter row of a table. */
const NEEDS_EXTENSION = /```|~~~|^(?=[^\n]*\|)(?=[^\n]*-)[|: \t>*+-]+$/m;
/** Matches the host that a link's text claims; file names that look like hosts claim none. */
const CLAIMED_HOST = /^\s*(?:https?:\/\/)?((?:[\w-]+\.)+(?!(?:[jt]sx?|py|md|json|sh|rs)\b)[a-z]{2,})(?=[/:?#\s]|$)/i;
/** Blocks at the end of a streaming text that more text may change: the last one, and one it may yet join. */
const UNSETTLED = 2;

export class MarkdownRenderer {
  extension: MarkdownExtension | undefined;
  #rendered: Rendered[] = [];
  /** Blocks that cannot change any more, the length of their source, and the heading levels open after them. */
  #settled = { count: 0, length: 0, levels: [] as number[] };

  constructor(
    readonly root: HTMLElement,
    readonly options: MarkdownOptions,
  ) {}

  /** Sets the extension; the next `render` applies it to the whole text. */
  extend(extension: MarkdownExtension): void {
    this.extension = extension;
    this.#settled = { count: 0, length: 0, levels: [] };
  }

  /**
   * Renders the whole text so far; while `streaming`, more will follow.
   * Stops after `budget` ms and returns false if there is more to render by another call.
   */
  render(text: string, streaming: boolean, budget = Infinity): boolean {
    const { count, length, levels } = this.#settled;
    const tail = withoutBidiControls(text.replace(/\r\n?/g, "\n")).slice(length);
    if (!this.extension && NEEDS_EXTENSION.test(tail)) this.options.needsExtension();
    const blocks = parseBlocks(streaming ? tail.replace(AMBIGUOUS_END, "") : tail, this.extension);
    const open = [...levels];
    const levelsAfter = blocks.map((block) => (rankHeadings([block], open), [...open]));
    const shown = this.#update(this.root, this.#rendered, blocks, streaming, count, performance.now() + budget);
    const settling = Math.min(shown, blocks.length - UNSETTLED);
    if (settling > 0) this.#settle(tail, blocks.slice(0, settling), levelsAfter[settling - 1]!);
    return shown === blocks.length;
  }

  /** Settles these first blocks of `tail`, after which the headings of `levels` are open. */
  #settle(tail: string, blocks: Block[], levels: number[]): void {
    const { count, length } = this.#settled;
    const end = blocks.reduce((at, { source }) => tail.indexOf(source, at) + source.length, 0);
    this.#settled = { count: count + blocks.length, length: length + end, levels };
  }

  /** Renders `blocks` from position `from` on until `deadline`, and removes what follows them; returns how many it rendered. */
  #update(parent: HTMLElement, rendered: Rendered[], blocks: Block[], streaming: boolean, from = 0, deadline = Infinity): number {
    let built = false;
    for (let index = 0; index < blocks.length; index++) { // old libraries replace `entries`
      if (built && performance.now() > deadline) return index;
      const at = from + index;
      const before = rendered[at];
      const next = (rendered[at] = this.#block(before, blocks[index]!, streaming && index === blocks.length - 1));
      built ||= next !== before;
      if (next.node === before?.node) continue;
      if (before) before.node.replaceWith(next.node);
      else parent.append(next.node);
    }
    for (const { node } of rendered.splice(from + blocks.length)) detach(node);
    return blocks.length;
  }

  /** Renders a block, reusing the previous node at its position if it is of the same kind. */
  #block(previous: Rendered | undefined, block: Block, streaming: boolean): Rendered {
    const key = `${streaming}${this.#kind(block)}\n${block.source}`;
    if (previous?.key === key) return previous;
    const reusable = previous?.key.replace(/^true|^false/, "").startsWith(`${this.#kind(block)}\n`) ? previous : undefined;
    const inner = reusable?.inner ?? [];
    switch (block.kind) {
      case "code": {
        const code = reusable?.code ?? element("code");
        code.textContent = block.text;
        const node = reusable?.node ?? this.#code(element("pre", { dir: "ltr" }, code), block.language);
        return { key, node, code, inner };
      }
      case "quote": {
        const node = reusable?.node ?? element("blockquote");
        this.#update(node, inner, block.children, streaming);
        return { key, node, inner };
      }
      case "list": {
        const ordered = block.start !== null;
        const node = reusable?.node ?? (ordered ? element("ol", { start: String(block.start) }) : element("ul"));
        this.#items(node, inner, block.items, streaming);
        return { key, node, inner };
      }
      default:
        return { key, node: this.#leaf(block, streaming), inner };
    }
  }

  #items(list: HTMLElement, rendered: Rendered[], items: Block[][], streaming: boolean): void {
    items.forEach((blocks, at) => {
      const item = (rendered[at] ??= { key: "", node: element("li"), inner: [] });
      if (!item.node.parentNode) list.append(item.node);
      const [first] = blocks;
      const task = first?.kind === "paragraph" && /^\[([ x])\] /i.exec(first.text);
      if (task) {
        first.text = `${task[1] === " " ? "\u2610" : "\u2611"} ${first.text.slice(4)}`; // a box, empty or checked
        item.node.className = "task";
      }
      this.#update(item.node, item.inner, blocks, streaming && at === items.length - 1);
    });
    for (const { node } of rendered.splice(items.length)) detach(node);
  }

  #code(pre: HTMLElement, language: string): HTMLElement {
    return this.extension?.wrapCode(pre, language) ?? pre;
  }

  #leaf(block: Block, streaming: boolean): HTMLElement {
    if (block.kind === "table") return this.extension!.table(block, (text) => this.#inline(text, false));
    if (block.kind === "heading") return element(`h${Math.min(6, block.level + 2)}`, {}, ...this.#inline(block.text, streaming));
    return block.kind === "paragraph" ? element("p", {}, ...this.#inline(block.text, streaming)) : element("hr");
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
    return link(node.address, ...children, ...otherHost(plainText(node.children), node.address));
  }

  /** Returns the kind with what else the outermost node depends on; nodes are reused only within it. */
  #kind(block: Block): string {
    if (block.kind === "code") return `code ${block.language} ${!this.extension}`;
    if (block.kind === "heading") return `heading ${block.level}`;
    return block.kind === "list" ? `list ${block.start}` : block.kind;
  }
}

const TAGS = { strong: "strong", emphasis: "em", deleted: "del" } as const;

/** Turns heading levels into ranks without gaps, below the `levels` of the headings around them. */
function rankHeadings(blocks: Block[], levels: number[]): void {
  for (const block of blocks) {
    if (block.kind === "quote") rankHeadings(block.children, levels);
    if (block.kind === "list") for (const item of block.items) rankHeadings(item, levels);
    if (block.kind !== "heading") continue;
    while (levels.length && levels.at(-1)! >= block.level) levels.pop();
    levels.push(block.level);
    block.level = levels.length;
  }
}

/** Names the host of a link whose text is the address of another one. */
function otherHost(text: string, address: string): Node[] {
  const claimed = CLAIMED_HOST.exec(text)?.[1];
  const bare = (host: string): string => host.toLowerCase().replace(/^www\./, "");
  const { hostname, protocol } = new URL(address);
  if (!claimed || !protocol.startsWith("http") || bare(claimed) === bare(hostname)) return [];
  return [element("span", { class: "host" }, ` (${hostname})`)];
}

function image(src: string, alt: string): HTMLElement {
  return element("img", { alt, loading: "lazy", referrerpolicy: "no-referrer", src });
}

/** Flattens nodes to text, for an image's description. */
function plainText(nodes: Inline[]): string {
  return nodes.map((node) => ("text" in node ? node.text : "children" in node ? plainText(node.children) : " ")).join("");
}
