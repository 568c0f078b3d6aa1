/** Shows the panel: header, log, notices, status and composer. Reports what the visitor does and decides nothing. */
import { listen } from "../dom/document.ts";
import { detach, element, iconButton } from "../dom/elements.ts";
import type { Settings } from "../dom/settings.ts";
import type { Texts } from "../texts/en.ts";
import { Answer, screenReaderText, type AnswerEnvironment } from "./answer.ts";
import { Composer } from "./composer.ts";
import { captureKeys, trapFocus } from "./keyboard.ts";

/** Handlers of what the visitor does. */
interface PanelHandlers extends Pick<AnswerEnvironment, "rate" | "again"> {
  send(question: string): void;
  stop(): void;
  close(): void;
  startNewChat(): void;
}

const FULL_SCREEN = "(max-width: 480px), (max-height: 420px)";

export class Panel {
  readonly node: HTMLElement;
  readonly composer: Composer;
  readonly environment: AnswerEnvironment;
  #title: HTMLElement;
  #log: HTMLElement;
  #newChat: HTMLButtonElement;
  #toEnd: HTMLButtonElement;
  #notice = element("p", { class: "notice" });
  #status = element("div", { role: "status", class: "unseen" });
  #starters: HTMLElement | undefined;
  #atEnd = true;

  constructor(
    readonly texts: Texts,
    readonly settings: Settings,
    readonly handlers: PanelHandlers,
  ) {
    const { rate, again } = handlers;
    this.environment = { texts, imageOrigins: [], rate, again, announce: (text) => this.announce(text), followEnd: () => this.#followEnd() };
    this.#title = element("h2", { id: "title" }, settings.title || texts.title);
    const log = { class: "log", role: "log", "aria-live": "off", "aria-label": texts.conversation, tabindex: "0" };
    this.#log = element("div", log);
    this.#newChat = iconButton("fresh", texts.fresh, "M12 5v14M5 12h14");
    this.#toEnd = iconButton("latest", texts.latest, "M12 5v14M6 13l6 6 6-6");
    this.composer = new Composer(texts, handlers.send, handlers.stop);
    const names = ["panel", settings.inline ? "within" : "above", settings.alignLeft ? "left" : ""].join(" ");
    const direction = settings.direction || (texts.rightToLeft ? "rtl" : "ltr");
    const role = settings.inline ? "region" : "dialog";
    this.node = element("div", { class: names, role, "aria-labelledby": "title", lang: texts.code, dir: direction, tabindex: "-1" });
    const foot = element("div", { class: "foot" }, this.#toEnd, this.#notice, this.composer.node);
    this.node.append(this.#head(), this.#log, foot, this.#status);
    this.#notice.hidden = this.#toEnd.hidden = this.#newChat.hidden = true;
    this.#listen();
  }

  /** Empties the log and shows the title, the greeting and the suggested questions. */
  showIntroduction(title: string, greeting: string, starters: string[]): void {
    this.#title.textContent = title || this.texts.title;
    this.#log.replaceChildren();
    if (greeting) {
      const answer = new Answer(this.environment);
      answer.finish(greeting);
      this.#log.append(answer.node);
    }
    this.#starters = element("div", { class: "starters", role: "group", "aria-label": this.texts.starters });
    for (const starter of starters) {
      const choice = element("button", { type: "button", class: "starter", dir: "auto" }, starter);
      choice.onclick = () => {
        if (this.composer.busy) return;
        this.composer.focus();
        this.handlers.send(starter);
      };
      this.#starters.append(choice);
    }
    if (starters.length) this.#log.append(this.#starters);
    this.#newChat.hidden = true;
  }

  addQuestion(text: string): HTMLElement {
    detach(this.#starters);
    this.#newChat.hidden = false;
    this.#atEnd = true;
    const node = element("div", { class: "question", dir: "auto" }, screenReaderText(this.texts.you), text);
    this.#log.append(node);
    this.#followEnd();
    return node;
  }

  addAnswer(): Answer {
    const answer = new Answer(this.environment);
    this.#log.append(answer.node);
    this.#followEnd();
    return answer;
  }

  setStreaming(streaming: boolean): void {
    this.composer.setStreaming(streaming);
    this.#log.setAttribute("aria-busy", String(streaming));
  }

  /** Shows and announces a line above the composer, or hides it. */
  #setNotice(text: string): void {
    this.#notice.textContent = text;
    this.#notice.hidden = !text;
    if (text) this.announce(text);
  }

  /** Announces a text once to screen readers. */
  announce(text: string): void {
    this.#status.textContent = text;
  }

  /** Focuses the field, or the panel where the field would open a virtual keyboard over the greeting. */
  focus(): void {
    if (matchMedia("(pointer: coarse)").matches) this.node.focus({ preventScroll: true });
    else this.composer.focus();
  }

  /** Captures keys and fits the panel to the screen until `signal` aborts; a full-screen panel is modal. */
  activate(signal: AbortSignal): void {
    captureKeys(this.node, signal, (event) => this.#onKey(event));
    const fit = (): void => {
      const fullScreen = matchMedia(FULL_SCREEN).matches && !this.settings.inline;
      if (fullScreen) this.node.setAttribute("aria-modal", "true");
      else this.node.removeAttribute("aria-modal");
      // A virtual keyboard covers the page without resizing it.
      const { height, offsetTop, scale } = visualViewport ?? { height: 0, offsetTop: 0, scale: 0 };
      const covered = fullScreen && scale === 1 && innerHeight - height > 60;
      this.node.style.height = covered ? `${height}px` : "";
      this.node.style.top = covered ? `${offsetTop}px` : "";
    };
    listen(visualViewport ?? window, "resize", fit, signal);
    fit();
    this.#watchConnection(signal);
    this.#followEnd();
  }

  #watchConnection(signal: AbortSignal): void {
    const update = (): void => this.#setNotice(navigator.onLine ? "" : this.texts.offline);
    listen(window, "online", update, signal);
    listen(window, "offline", update, signal);
    update();
  }

  #onKey(event: KeyboardEvent): void {
    if (event.isComposing || event.keyCode === 229) return; // Safari ends the composition before its last key
    const [target] = event.composedPath();
    if (event.key === "Escape") this.#escape(target as Element);
    if (event.key === "Tab" && this.node.hasAttribute("aria-modal")) trapFocus(this.node, event);
    if (event.key !== "Enter" || event.shiftKey || target !== this.composer.field) return;
    event.preventDefault();
    this.composer.submit();
  }

  /** Closes the comment form that has the focus, or else a floating panel. */
  #escape(target: Element): void {
    const form = target.closest(".comment");
    if (form) form.dispatchEvent(new Event("dismiss"));
    else if (!this.settings.inline) this.handlers.close();
  }

  #head(): HTMLElement {
    const close = iconButton("close", this.texts.close, "M6 6l12 12M18 6L6 18");
    close.onclick = () => this.handlers.close();
    this.#newChat.onclick = () => this.handlers.startNewChat();
    const label = element("p", { class: "label" }, this.texts.assistant);
    const head = element("div", { class: "head" }, element("div", {}, this.#title, label), this.#newChat);
    if (!this.settings.inline) head.append(close);
    return head;
  }

  #listen(): void {
    this.#log.onscroll = () => {
      this.#atEnd = this.#log.scrollHeight - this.#log.scrollTop - this.#log.clientHeight < 40;
      this.#toEnd.hidden = this.#atEnd;
    };
    this.#toEnd.onclick = () => {
      this.#atEnd = true;
      this.#followEnd();
      this.#log.focus({ preventScroll: true });
    };
  }

  /** Keeps the end in view unless the visitor has scrolled up. */
  #followEnd(): void {
    if (this.#atEnd) this.#log.scrollTop = this.#log.scrollHeight;
  }
}
