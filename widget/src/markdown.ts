/**
 * Shows growing Markdown as DOM: only the blocks that changed are made anew, so a selection in finished text stays.
 * Nodes are made one by one from a fixed list of elements; no string ever becomes HTML, and nothing is fetched.
 */
import { parseBlocks, type Block } from "./blocks.ts";
import { element } from "./dom.ts";
import { parseInline, type Inline } from "./inline.ts";

export class Markdown {
  #shown: string[] = [];

  constructor(readonly root: HTMLElement) {}

  /** Show the whole text so far; `open` says that more will come. */
  show(text: string, open: boolean): void {
    const blocks = parseBlocks(text);
    const keys = blocks.map((block, at) => `${open && at === blocks.length - 1}${block.kind}\n${block.source}`);
    let same = 0;
    while (same < keys.length && keys[same] === this.#shown[same]) same++;
    for (const node of [...this.root.children].slice(same)) node.remove();
    this.root.append(...blocks.slice(same).map((block, at) => blockNode(block, open && same + at === blocks.length - 1)));
    this.#shown = keys;
  }
}

function blockNode(block: Block, open: boolean): HTMLElement {
  switch (block.kind) {
    case "paragraph":
      return element("p", {}, ...inlineNodes(block.text, open));
    case "heading":
      return element(`h${Math.min(6, block.level + 2)}`, {}, ...inlineNodes(block.text, open));
    case "code":
      return element("pre", { tabindex: "0" }, element("code", {}, block.text));
    case "quote":
      return element("blockquote", {}, ...blockNodes(block.children, open));
    case "rule":
      return element("hr");
    case "list":
      return listNode(block.start, block.items, open);
  }
}

function blockNodes(blocks: Block[], open: boolean): HTMLElement[] {
  return blocks.map((block, at) => blockNode(block, open && at === blocks.length - 1));
}

function listNode(start: number | null, items: Block[][], open: boolean): HTMLElement {
  const nodes = items.map((item, at) => element("li", {}, ...blockNodes(item, open && at === items.length - 1)));
  if (start === null) return element("ul", {}, ...nodes);
  return element("ol", { start: String(start) }, ...nodes);
}

function inlineNodes(text: string, open: boolean): Node[] {
  return parseInline(text, open).map(inlineNode);
}

function inlineNode(node: Inline): Node {
  switch (node.kind) {
    case "text":
      return document.createTextNode(node.text);
    case "code":
      return element("code", {}, node.text);
    case "break":
      return element("br");
    case "strong":
      return element("strong", {}, ...node.children.map(inlineNode));
    case "emphasis":
      return element("em", {}, ...node.children.map(inlineNode));
    case "link": {
      const options = { href: node.address, target: "_blank", rel: "noopener noreferrer nofollow" };
      return element("a", options, ...node.children.map(inlineNode));
    }
  }
}
