/** Fakes the parts of a document that the Markdown renderer uses, and serialises them as HTML. */
type Child = FakeElement | FakeText;

class FakeText {
  parentNode: FakeElement | null = null;
  constructor(readonly text: string) {}

  toString(): string {
    return this.text.replace(/&/g, "&amp;").replace(/</g, "&lt;").replace(/>/g, "&gt;").replace(/"/g, "&quot;");
  }
}

export class FakeElement {
  parentNode: FakeElement | null = null;
  childNodes: Child[] = [];
  attributes: Record<string, string> = {};

  constructor(readonly name: string) {}

  get children(): FakeElement[] {
    return this.childNodes.filter((node) => node instanceof FakeElement);
  }

  append(...nodes: (Child | string)[]): void {
    for (const node of nodes) {
      const child = typeof node === "string" ? new FakeText(node) : node;
      child.parentNode = this;
      this.childNodes.push(child);
    }
  }

  setAttribute(name: string, value: string): void {
    this.attributes[name] = value;
  }

  removeChild(child: Child): void {
    this.childNodes = this.childNodes.filter((node) => node !== child);
  }

  replaceWith(other: FakeElement): void {
    if (!this.parentNode) return;
    this.parentNode.childNodes[this.parentNode.childNodes.indexOf(this)] = other;
    other.parentNode = this.parentNode;
  }

  set textContent(text: string) {
    this.childNodes = [];
    this.append(text);
  }

  get innerHTML(): string {
    return this.childNodes.join("");
  }

  toString(): string {
    // Omits attributes that only style.
    const kept = Object.entries(this.attributes).filter(([name]) => name === "href" || name === "start");
    const attributes = kept.map(([name, value]) => ` ${name}="${new FakeText(value)}"`).join("");
    const isVoid = this.name === "br" || this.name === "hr";
    return `<${this.name}${attributes}>${isVoid ? "" : `${this.innerHTML}</${this.name}>`}`;
  }
}

/** Defines the globals that the renderer needs. */
export function installFakeDocument(): void {
  class Document {
    createElement(name: string): FakeElement {
      return new FakeElement(name);
    }
  }
  Object.assign(globalThis, { document: new Document(), Document, Text: FakeText });
}
