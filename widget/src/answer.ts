/** One answer on the screen: waiting, growing, whole, or with what went wrong under it. */
import { element } from "./dom.ts";
import { Markdown } from "./markdown.ts";
import type { Texts } from "./texts.ts";

export class Answer {
  readonly node: HTMLElement;
  #text = element("div", { class: "text" });
  #markdown = new Markdown(this.#text);
  #waiting = element("div", { class: "dots" }, element("i"), element("i"), element("i"));
  #latest = "";
  #frame = 0;

  /** `shown` runs after each change of the text. */
  constructor(
    readonly texts: Texts,
    readonly shown: () => void,
  ) {
    this.node = element("div", { class: "answer" }, unseen(texts.answer), this.#text, this.#waiting);
  }

  /** Show the whole text so far, at most once a frame. */
  grow(text: string): void {
    this.#latest = text;
    this.#frame ||= requestAnimationFrame(() => this.#draw(true));
  }

  /** Show the text as final; returns it as it reads, for the announcement. */
  finish(text: string): string {
    cancelAnimationFrame(this.#frame);
    this.#latest = text;
    this.#draw(false);
    return this.#text.textContent ?? "";
  }

  /** A quiet line under the text. */
  hint(text: string): void {
    this.node.append(element("p", { class: "hint" }, text));
    this.shown();
  }

  /** A line that says what went wrong, with a button to try again. */
  trouble(text: string, retry: () => void): { line: HTMLElement; button: HTMLButtonElement } {
    const line = element("span", {}, text);
    const button = element("button", { type: "button", class: "retry" }, this.texts.retry);
    button.addEventListener("click", retry);
    this.node.append(element("div", { class: "trouble-line" }, line, button));
    this.shown();
    return { line, button };
  }

  /** The chance to try again is gone, because the conversation went on. */
  settle(): void {
    this.node.querySelector(".retry")?.remove();
  }

  #draw(open: boolean): void {
    this.#frame = 0;
    if (!open || this.#latest) this.#waiting.remove();
    this.#markdown.show(this.#latest, open);
    this.shown();
  }
}

/** For screen readers only: who speaks. */
export function unseen(text: string): HTMLElement {
  return element("span", { class: "unseen" }, text);
}
