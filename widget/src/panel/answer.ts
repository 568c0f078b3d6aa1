/** Shows one reply as an answer: waiting, streaming, complete, or with a problem below it. */
import type { Citation, Turn } from "../conversation/turn.ts";
import { detach, element, icon, link } from "../dom/elements.ts";
import { MarkdownRenderer } from "../markdown/renderer.ts";
import type { Texts } from "../texts/en.ts";
import { answerActions } from "./answer-actions.ts";
import { copyButton } from "./copy-button.ts";

/** What an answer needs from the panel around it. */
export interface AnswerEnvironment {
  texts: Texts;
  /** The origins whose images may be shown. */
  imageOrigins: string[];
  /** Announces a text once to screen readers. */
  announce(text: string): void;
  /** Keeps the log's end in view after a change of height. */
  followEnd(): void;
  /** Resolves to whether the server has stored the rating. */
  rate(turn: Turn, comment?: string): Promise<boolean>;
  /** Asks for another answer to the same question. */
  again(turn: Turn): void;
}

/** Limits rendering to 60 times a second with a timer, since hidden pages get no animation frames. */
const FRAME_MS = 16;

export class Answer {
  readonly node: HTMLElement;
  #content = element("div", { class: "text", dir: "auto" });
  #markdown: MarkdownRenderer;
  #dots = element("div", { class: "dots" }, element("i"), element("i"), element("i"));
  #below = element("div", { class: "below" });
  #text = "";
  #timer = 0;

  constructor(readonly environment: AnswerEnvironment) {
    const { texts, imageOrigins } = environment;
    this.#markdown = new MarkdownRenderer(this.#content, {
      allowsImage: (address) => imageOrigins.includes(new URL(address).origin),
      wrapCode: (node, language) => {
        const copy = copyButton(environment, texts.copyCode, () => node.textContent ?? "");
        return element("div", { class: "code" }, element("div", { class: "bar" }, element("span", {}, language), copy), node);
      },
    });
    this.node = element("div", { class: "answer" }, screenReaderText(texts.answer), this.#content, this.#dots, this.#below);
  }

  /** Shows the whole text so far, at most once a frame. */
  update(text: string): void {
    this.#text = text;
    this.#timer ||= window.setTimeout(() => this.#render(true), FRAME_MS);
  }

  /** Shows the final text and returns it as plain text for the announcement. */
  finish(text: string): string {
    clearTimeout(this.#timer);
    this.#text = text;
    this.#render(false);
    return [...this.#content.children].map(announcedText).join(" ");
  }

  /** Replaces everything below the text by a quiet line, or by nothing. */
  showHint(text: string): void {
    this.#below.replaceChildren(...(text ? [element("p", { class: "hint" }, text)] : []));
    this.environment.followEnd();
  }

  /** Adds the sources and the actions below the text. */
  showActions(turn: Turn): void {
    if (turn.citations.length) this.#below.append(this.#sources(turn.citations));
    this.#below.append(answerActions(turn, this.environment));
    this.environment.followEnd();
  }

  /** Replaces everything below the text by a problem and a button to try again. */
  showProblem(text: string, retry: () => void): { line: HTMLElement; button: HTMLButtonElement } {
    const line = element("span", {}, text);
    const button = element("button", { type: "button", class: "retry" }, this.environment.texts.retry);
    button.onclick = retry;
    this.#below.replaceChildren(element("div", { class: "trouble-line" }, icon("M12 8v5m0 3v.01M12 3l9.5 17h-19z"), line, button));
    detach(this.#dots);
    this.environment.followEnd();
    return { line, button };
  }

  /** Removes the buttons that only the latest answer offers. */
  settle(): void {
    for (const node of this.#below.querySelectorAll(".retry, .again")) detach(node);
  }

  #sources(citations: Citation[]): HTMLElement {
    const { texts, followEnd } = this.environment;
    const items = citations.map(({ title, address, passage }) => {
      const item = element("li", {}, link(address, title));
      if (passage) {
        const name = `${texts.passage}: ${title}`;
        const quote = element("blockquote", { tabindex: "0", dir: "auto", "aria-label": name }, passage);
        const details = element("details", {}, element("summary", { "aria-label": name }, texts.passage), quote);
        details.ontoggle = followEnd;
        item.append(details);
      }
      return item;
    });
    return element("div", { class: "sources" }, element("p", {}, texts.sources), element("ol", { "aria-label": texts.sources }, ...items));
  }

  #render(streaming: boolean): void {
    this.#timer = 0;
    if (!streaming || this.#text) detach(this.#dots);
    this.#markdown.render(this.#text, streaming);
    this.environment.followEnd();
  }
}

/** Creates a visually hidden text, which says who speaks. */
export function screenReaderText(text: string): HTMLElement {
  return element("span", { class: "unseen" }, text);
}

/** Reads a block as rendered, so that cells and items stay apart, and leaves out the bar above code. */
function announcedText(block: Element): string {
  return ((block.className === "code" ? block.lastElementChild : block) as HTMLElement).innerText;
}
