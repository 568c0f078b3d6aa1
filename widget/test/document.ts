/** As much of a document as Markdown needs, so that its result can be read as a string without a browser. */
type Child = Tag | Text;

class Text {
  parent: Tag | null = null;
  constructor(readonly text: string) {}

  toString(): string {
    return this.text.replace(/&/g, "&amp;").replace(/</g, "&lt;").replace(/>/g, "&gt;").replace(/"/g, "&quot;");
  }
}

export class Tag {
  parent: Tag | null = null;
  nodes: Child[] = [];
  attributes: Record<string, string> = {};

  constructor(readonly name: string) {}

  get children(): Tag[] {
    return this.nodes.filter((node) => node instanceof Tag);
  }

  append(...nodes: (Child | string)[]): void {
    for (const node of nodes) {
      const child = typeof node === "string" ? new Text(node) : node;
      child.parent = this;
      this.nodes.push(child);
    }
  }

  setAttribute(name: string, value: string): void {
    this.attributes[name] = value;
  }

  remove(): void {
    if (this.parent) this.parent.nodes = this.parent.nodes.filter((node) => node !== this);
  }

  replaceWith(other: Tag): void {
    if (!this.parent) return;
    this.parent.nodes[this.parent.nodes.indexOf(this)] = other;
    other.parent = this.parent;
  }

  /** Only ever given text without tags. */
  set textContent(text: string) {
    this.nodes = [];
    this.append(text);
  }

  inner(): string {
    return this.nodes.join("");
  }

  toString(): string {
    const keep = Object.entries(this.attributes).filter(([name]) => name === "href" || name === "start");
    const shown = keep.map(([name, value]) => ` ${name}="${new Text(value)}"`).join("");
    const empty = this.name === "br" || this.name === "hr";
    return `<${this.name}${shown}>${empty ? "" : `${this.inner()}</${this.name}>`}`;
  }
}

/** Make `document` exist. */
export function install(): void {
  class Document {
    createElement(name: string): Tag {
      return new Tag(name);
    }
  }
  Object.assign(globalThis, { document: new Document(), Document, Text });
}
