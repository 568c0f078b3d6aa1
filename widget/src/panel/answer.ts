/** Shows one reply as an answer: waiting, streaming, complete, or with a problem below it. */
import type { Rich, Surroundings } from "../chunks/contract.ts";
import { loadExtra } from "../chunks/load.ts";
import type { Turn } from "../conversation/turn.ts";
import { detach, element, icon } from "../dom/elements.ts";
import { MarkdownRenderer } from "../markdown/renderer.ts";

/** What an answer needs from the panel around it. */
export interface AnswerEnvironment extends Surroundings {
  /** The panel, whose shadow root gets the stylesheets of chunks. */
  panel: HTMLElement;
  /** The origins whose images may be shown. */
  imageOrigins: string[];
}

/** Limits rendering to 60 times a second with a timer, since hidden pages get no animation frames. */
const FRAME_MS = 16;
/** Rendering pauses after this time, so that the page stays responsive while a long answer appears. */
const BUDGET_MS = 25;

export class Answer {
  readonly node: HTMLElement;
  /** Whether this is the answer to the latest question. */
  latest = true;
  #content = element("div", { class: "text", dir: "auto" });
  #markdown: MarkdownRenderer;
  #dots = element("div", { class: "dots" });
  #below = element("div", { class: "below" });
  #text = "";
  #timer = 0;
  #rich: Promise<Rich | null> | undefined;
  #streaming = false;

  constructor(readonly environment: AnswerEnvironment) {
    const { texts, imageOrigins } = environment;
    this.#markdown = new MarkdownRenderer(this.#content, {
      allowsImage: (address) => imageOrigins.includes(new URL(address).origin),
      needsExtension: () => void this.#loadRich(),
    });
    this.node = element("article", { class: "answer", part: "answer" }, screenReaderText(texts.answer), this.#content, this.#dots, this.#below);
  }

  /** Shows the whole text so far, at most once a frame. */
  update(text: string): void {
    this.#text = text;
    this.#timer ||= window.setTimeout(() => this.#render(true), FRAME_MS);
  }

  /** Shows the final text. */
  finish(text: string): void {
    clearTimeout(this.#timer);
    this.#text = text;
    this.#render(false);
  }

  /** Replaces everything below the text by a quiet line, or by nothing. */
  showHint(text: string): void {
    this.#below.replaceChildren(...(text ? [element("p", { class: "hint" }, text)] : []));
    this.environment.followEnd();
  }

  /** Adds the sources and the actions below the text; what cannot be loaded is left out. Resolves to a function that reads the text to announce, which costs a layout. */
  async showActions(turn: Turn): Promise<() => Promise<string> | string> {
    const { citations } = turn;
    const places = element("div");
    this.#below.append(places);
    const [rich, actions] = await Promise.all([citations.length ? this.#loadRich() : null, loadExtra("turn", this.environment.panel).catch(() => null)]);
    if (rich) places.append(rich.sourceList(citations, this.environment));
    if (actions && places.isConnected) places.append(actions.answerActions(turn, this.environment, this.#content));
    if (!this.latest) this.settle();
    this.environment.followEnd();
    await this.#rich;
    return () => actions?.spoken(this.#content, this.environment.texts) ?? "";
  }

  /** Replaces everything below the text by a problem and a button to try again. */
  showProblem(text: string, retry: () => void): { line: HTMLElement; button: HTMLButtonElement } {
    const line = element("span", {}, text);
    const button = element("button", { type: "button", class: "retry once" }, this.environment.texts.retry);
    button.onclick = retry;
    this.#below.replaceChildren(element("div", { class: "trouble-line" }, icon("M12 8v5m0 3v.01M12 3l9.5 17h-19z"), line, button));
    detach(this.#dots);
    this.environment.followEnd();
    return { line, button };
  }

  /** Removes the buttons that only the latest answer offers. */
  settle(): void {
    this.latest = false;
    for (const node of this.#below.querySelectorAll(".once")) detach(node);
  }

  /** Loads tables, code and sources, and renders the text with them; null if they cannot be loaded. */
  #loadRich(): Promise<Rich | null> {
    return (this.#rich ??= loadExtra("rich", this.environment.panel).then(
      (rich) => {
        this.#markdown.extend(rich.markdown(this.environment));
        this.#render(this.#streaming);
        return rich;
      },
      () => null,
    ));
  }

  #render(streaming: boolean): void {
    this.#timer = 0;
    this.#streaming = streaming;
    if (!streaming || this.#text) detach(this.#dots);
    const whole = this.#markdown.render(this.#text, streaming, BUDGET_MS);
    if (!whole) this.#timer = window.setTimeout(() => this.#render(streaming));
    this.environment.followEnd();
  }
}

/** Creates a visually hidden text, which says who speaks. */
export function screenReaderText(text: string): HTMLElement {
  return element("span", { class: "unseen" }, text);
}
