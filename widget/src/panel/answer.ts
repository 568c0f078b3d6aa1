/** One answer on the screen: waiting, growing, whole, or with what went wrong under it. */
import { actions } from "./answer-actions.ts";
import { anchor, drop, element, icon } from "../dom/elements.ts";
import { copyButton } from "./copy-button.ts";
import type { Citation, Turn } from "../conversation/conversation.ts";
import { Markdown } from "../markdown/renderer.ts";
import type { Texts } from "../texts/select.ts";

/** What an answer needs of the panel around it. */
export interface Around {
  texts: Texts;
  /** The origins whose images may be shown. */
  images: string[];
  /** Say it once to screen readers. */
  announce(text: string): void;
  /** The answer has changed its height. */
  follow(): void;
  /** Says whether the server has stored it. */
  rate(turn: Turn, comment?: string): Promise<boolean>;
  again(turn: Turn): void;
}

export class Answer {
  readonly node: HTMLElement;
  #text = element("div", { class: "text", dir: "auto" });
  #markdown: Markdown;
  #waiting = element("div", { class: "dots" }, element("i"), element("i"), element("i"));
  #below = element("div", { class: "below" });
  #latest = "";
  #timer = 0;

  constructor(readonly around: Around) {
    const { texts, images } = around;
    this.#markdown = new Markdown(this.#text, {
      image: (address) => images.includes(new URL(address).origin),
      code: (node, language) => {
        const copy = copyButton(around, texts.copyCode, () => node.textContent ?? "");
        return element("div", { class: "code" }, element("div", { class: "bar" }, element("span", {}, language), copy), node);
      },
    });
    this.node = element("div", { class: "answer" }, unseen(texts.answer), this.#text, this.#waiting, this.#below);
  }

  /** Show the whole text so far, at most some sixty times a second. A timer: a page that is not drawn gets no frames. */
  grow(text: string): void {
    this.#latest = text;
    this.#timer ||= window.setTimeout(() => this.#draw(true), 16);
  }

  /** Show the text as final; returns it as it reads, for the announcement. */
  finish(text: string): string {
    clearTimeout(this.#timer);
    this.#latest = text;
    this.#draw(false);
    return [...this.#text.children].map(spoken).join(" ");
  }

  /** A quiet line under the text, in the place of what stood there. */
  hint(text: string): void {
    this.#below.replaceChildren(...(text ? [element("p", { class: "hint" }, text)] : []));
    this.around.follow();
  }

  /** The sources, and what can be done with a whole answer. */
  complete(turn: Turn): void {
    if (turn.citations.length) this.#below.append(this.#sources(turn.citations));
    this.#below.append(actions(turn, this.around));
    this.around.follow();
  }

  /** A line that says what went wrong, with a button to try again. */
  trouble(text: string, retry: () => void): { line: HTMLElement; button: HTMLButtonElement } {
    const line = element("span", {}, text);
    const retrying = element("button", { type: "button", class: "retry" }, this.around.texts.retry);
    retrying.onclick = retry;
    this.#below.replaceChildren(element("div", { class: "trouble-line" }, icon("M12 8v5m0 3v.01M12 3l9.5 17h-19z"), line, retrying));
    drop(this.#waiting);
    this.around.follow();
    return { line, button: retrying };
  }

  /** The conversation went on: what only the latest answer can do is gone. */
  settle(): void {
    for (const node of this.#below.querySelectorAll(".retry, .again")) drop(node);
  }

  #sources(citations: Citation[]): HTMLElement {
    const items = citations.map(({ title, address }) => {
      return element("li", {}, anchor(address, title));
    });
    return element("div", { class: "sources" }, element("p", {}, this.around.texts.sources), element("ol", {}, ...items));
  }

  #draw(open: boolean): void {
    this.#timer = 0;
    if (!open || this.#latest) drop(this.#waiting);
    this.#markdown.show(this.#latest, open);
    this.around.follow();
  }
}

/** For screen readers only: who speaks. */
export function unseen(text: string): HTMLElement {
  return element("span", { class: "unseen" }, text);
}

/** A block's text as it is to be read out: cells and items apart, without the bar above code. */
function spoken(block: Element): string {
  return ((block.className === "code" ? block.lastElementChild : block) as HTMLElement).innerText;
}

