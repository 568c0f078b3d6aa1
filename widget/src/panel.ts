/** The panel: header, log, status and composer. It shows and reports what the visitor does, and decides nothing. */
import { Answer, unseen } from "./answer.ts";
import { element, icon } from "./dom.ts";
import type { Texts } from "./texts.ts";

/** What the visitor can do. */
export interface Actions {
  send(question: string): void;
  stop(): void;
  close(): void;
}

export class Panel {
  readonly node: HTMLElement;
  #title: HTMLElement;
  #log: HTMLElement;
  #status = element("div", { role: "status", class: "unseen" });
  #field: HTMLTextAreaElement;
  #send: HTMLButtonElement;
  #stop: HTMLButtonElement;
  #following = true;

  constructor(
    readonly texts: Texts,
    readonly actions: Actions,
  ) {
    this.#title = element("h2", { id: "title" }, texts.title);
    const log = { class: "log", role: "log", "aria-live": "off", "aria-label": texts.conversation, tabindex: "0" };
    this.#log = element("div", log);
    const field = { rows: "1", "aria-label": texts.message, placeholder: texts.placeholder, enterkeyhint: "send" };
    this.#field = element("textarea", field);
    this.#send = button("send", "submit", texts.send, "M12 19V5M6 11l6-6 6 6");
    this.#stop = button("stop", "button", texts.stop, "M7 7h10v10H7z");
    this.node = element("div", { class: "panel", role: "dialog", "aria-labelledby": "title" });
    this.node.append(this.#head(), this.#log, this.#composer(), this.#status);
    this.#stop.hidden = true;
    this.#listen();
  }

  /** Show the skill's title and greeting, which stands first even if the visitor was faster. */
  name(title: string, greeting: string): void {
    this.#title.textContent = title || this.texts.title;
    const answer = new Answer(this.texts, () => this.#follow());
    answer.finish(greeting);
    if (greeting) this.#log.prepend(answer.node);
  }

  question(text: string): void {
    this.#following = true;
    this.#log.append(element("div", { class: "question" }, unseen(this.texts.you), text));
    this.#follow();
  }

  /** A new answer at the end of the log. */
  answer(): Answer {
    const answer = new Answer(this.texts, () => this.#follow());
    this.#log.append(answer.node);
    this.#follow();
    return answer;
  }

  /** While an answer is being written, Stop stands in the place of Send. */
  writing(now: boolean): void {
    const focused = (this.node.getRootNode() as ShadowRoot).activeElement;
    if (focused === this.#send || focused === this.#stop) this.focus(); // it is about to go
    this.#send.hidden = now;
    this.#stop.hidden = !now;
    this.#log.setAttribute("aria-busy", String(now));
  }

  /** Whether the visitor may send. */
  enable(now: boolean): void {
    this.#send.disabled = !now;
  }

  /** Say it once to screen readers. */
  announce(text: string): void {
    this.#status.textContent = text;
  }

  focus(): void {
    this.#field.focus({ preventScroll: true });
  }

  #head(): HTMLElement {
    const close = button("close", "button", this.texts.close, "M6 6l12 12M18 6L6 18");
    close.addEventListener("click", () => this.actions.close());
    const label = element("p", { class: "label" }, this.texts.assistant);
    return element("div", { class: "head" }, element("div", {}, this.#title, label), close);
  }

  #composer(): HTMLElement {
    const row = element("div", { class: "composer" }, this.#field, this.#send, this.#stop);
    const form = element("form", {}, row, element("p", { class: "caution" }, this.texts.caution));
    form.addEventListener("submit", (event) => {
      event.preventDefault();
      this.#submit();
    });
    return form;
  }

  #listen(): void {
    this.#stop.addEventListener("click", () => this.actions.stop());
    this.#log.addEventListener("scroll", () => (this.#following = atEnd(this.#log)));
    this.#field.addEventListener("keydown", (event) => {
      if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
      event.preventDefault();
      this.#submit();
    });
    this.node.addEventListener("keydown", (event) => {
      if (event.key === "Escape" && !event.isComposing) this.actions.close();
    });
    // The page's own shortcuts must not fire while the visitor types.
    for (const name of ["keydown", "keypress", "keyup"]) this.node.addEventListener(name, (event) => event.stopPropagation());
  }

  #submit(): void {
    const question = this.#field.value.trim();
    if (!question || this.#send.disabled || this.#send.hidden) return;
    this.#field.value = "";
    this.actions.send(question);
  }

  /** Keep the end in view, unless the visitor has scrolled up to read. */
  #follow(): void {
    if (this.#following) this.#log.scrollTop = this.#log.scrollHeight;
  }
}

function atEnd(log: HTMLElement): boolean {
  return log.scrollHeight - log.scrollTop - log.clientHeight < 40;
}

function button(name: string, type: string, label: string, path: string): HTMLButtonElement {
  return element("button", { type, class: `round ${name}`, "aria-label": label, title: label }, icon(path));
}
