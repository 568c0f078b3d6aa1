/** Shows the panel: header, log, notices, status and composer. Reports what the visitor does and decides nothing. */
import type { DraftStore } from "../chunks/contract.ts";
import { loadExtra } from "../chunks/load.ts";
import { documentMember, listen, withoutPrototype } from "../dom/document.ts";
import { detach, element, iconButton } from "../dom/elements.ts";
import { withoutBidiControls } from "../dom/text.ts";
import type { Settings } from "../dom/settings.ts";
import type { Texts } from "../texts/languages/en.ts";
import { Answer, screenReaderText, type AnswerEnvironment } from "./answer.ts";
import { Composer } from "./composer.ts";
import { captureKeys } from "./keyboard.ts";

/** Handlers of what the visitor does. */
interface PanelHandlers extends Pick<AnswerEnvironment, "client" | "again" | "edit"> {
  send(question: string): void;
  stop(): void;
  close(): void;
  startNewChat(): void;
}

const GROUP_SIZE = 16;
export const FULL_SCREEN = "(max-width: 480px), (max-height: 420px)";

export class Panel {
  readonly node: HTMLElement;
  readonly composer: Composer;
  readonly environment: AnswerEnvironment;
  #title: HTMLElement;
  readonly log: HTMLElement;
  readonly newChat: HTMLButtonElement;
  #toEnd: HTMLButtonElement;
  #notice = element("p", { class: "notice" });
  #status = element("div", { role: "status", class: "unseen" });
  #starters: HTMLElement | undefined;
  /** The latest turns; long logs are laid out by groups, of which those out of view cost nothing. */
  #group = element("div");
  #atEnd = true;
  #cleared = 0;
  #following = 0;

  constructor(
    readonly texts: Texts,
    readonly settings: Settings,
    readonly handlers: PanelHandlers,
  ) {
    const { client, again, edit } = handlers;
    this.#title = element("h2", { id: "title", part: "title" }, settings.title || texts.title);
    const log = { class: "log", part: "log", role: "log", "aria-live": "off", "aria-label": texts.conversation, tabindex: "0" };
    this.log = element("div", log);
    this.newChat = iconButton("fresh", texts.fresh, "M12 5v14M5 12h14");
    this.#toEnd = iconButton("latest", texts.latest, "M12 5v14M6 13l6 6 6-6");
    this.composer = new Composer(texts, handlers.send, handlers.stop);
    const names = ["panel rr-block ph-no-capture", settings.inline ? "within" : "above", settings.alignLeft ? "left" : ""].join(" ");
    const direction = settings.direction || (texts.rightToLeft ? "rtl" : "ltr");
    const role = settings.inline ? "region" : "dialog";
    this.node = element("div", { class: names, part: "panel", role, "aria-labelledby": "title", lang: texts.code, dir: direction, tabindex: "-1" });
    this.environment = { texts, panel: this.node, imageOrigins: [], client, again, edit, announce: this.announce, followEnd: () => this.#followEnd() };
    const foot = element("div", { class: "foot" }, this.#toEnd, this.#notice, this.composer.node);
    this.node.append(this.#head(), this.log, foot, this.#status);
    this.#notice.hidden = this.#toEnd.hidden = this.newChat.hidden = true;
    this.#listen();
  }

  /** Empties the log and shows the title, the greeting and the suggested questions. */
  showIntroduction(title: string, greeting: string, starters: string[]): void {
    this.#title.textContent = title || this.texts.title;
    this.log.replaceChildren();
    if (greeting) {
      const answer = new Answer(this.environment);
      answer.finish(greeting);
      this.#add(answer.node);
    }
    this.suggest(starters);
    this.newChat.hidden = true;
  }

  /** Offers the questions that were not asked yet at the end of the log, until the next one is. */
  suggest(questions: string[]): void {
    detach(this.#starters);
    if (!questions.length) return;
    const asked = [...this.log.querySelectorAll(".question")].map((node) => node.lastChild?.textContent);
    const open = questions.filter((question) => !asked.includes(question));
    if (!open.length) return;
    this.#starters = element("div", { class: "starters", role: "group", "aria-label": this.texts.starters });
    for (const question of open) {
      const choice = element("button", { type: "button", class: "starter", part: "starter", dir: "auto" }, withoutBidiControls(question));
      choice.onclick = () => {
        if (this.composer.busy) return;
        this.composer.focus();
        this.handlers.send(question);
      };
      this.#starters.append(choice);
    }
    this.log.append(this.#starters);
    this.#followEnd();
  }

  addQuestion(text: string): HTMLElement {
    detach(this.#starters);
    this.newChat.hidden = false;
    this.#atEnd = true;
    const node = element("article", { class: "question", part: "question", dir: "auto" }, screenReaderText(this.texts.you), withoutBidiControls(text));
    this.#add(node);
    return node;
  }

  addAnswer(): Answer {
    const answer = new Answer(this.environment);
    this.#add(answer.node);
    return answer;
  }

  #add(node: HTMLElement): void {
    if (!this.#group.isConnected || this.#group.childElementCount >= GROUP_SIZE) this.log.append((this.#group = element("div", { class: "turns" })));
    this.#group.append(node);
    this.#followEnd();
  }

  /** Announces that a new chat has begun; returns the line that shows it. */
  beginning(): HTMLElement {
    this.announce(this.texts.begun);
    return element("p", { class: "hint" }, this.texts.begun);
  }

  /** Keeps what is typed in `store`; its code is loaded on the first input. */
  keepDraft(store: DraftStore): void {
    const load = (): void => void loadExtra("field", this.node).then((extra) => extra.watchField(this.composer, this.texts, store), () => {});
    if (store.read().draft) load();
    else this.composer.field.addEventListener("input", load, withoutPrototype({ once: true }));
  }

  setStreaming(streaming: boolean): void {
    this.composer.setStreaming(streaming);
    this.log.setAttribute("aria-busy", String(streaming));
  }

  /** Shows and announces a line above the composer, or hides it. */
  #setNotice(text: string): void {
    this.#notice.textContent = text;
    this.#notice.hidden = !text;
    this.#followEnd();
    if (text) this.announce(text);
  }

  /** Announces a text once to screen readers. */
  announce = (text: string): void => {
    this.#status.textContent = text;
    clearTimeout(this.#cleared); // a later visit of the line must not find an old announcement
    this.#cleared = window.setTimeout(() => (this.#status.textContent = ""), 10_000 + 70 * text.length);
  };

  /** Focuses the field, or the panel where the field would open a virtual keyboard over the greeting. */
  focus(): void {
    if (matchMedia("(pointer: coarse)").matches) this.node.focus({ preventScroll: true });
    else this.composer.focus();
  }

  /** Captures keys and fits the panel to the screen until `signal` aborts; a full-screen panel is modal. */
  activate(signal: AbortSignal): void {
    captureKeys(this.node, signal, (event) => this.#onKey(event));
    let small = this.settings.inline;
    const fit = (): void => {
      if (small || !matchMedia(FULL_SCREEN).matches) return;
      small = true;
      void loadExtra("phone", this.node).then((phone) => signal.aborted || phone.fillScreen(this.node, signal, this.handlers.close), () => {});
    };
    listen(window, "resize", fit, signal);
    fit();
    this.#watchConnection(signal);
    const { host } = this.node.getRootNode() as ShadowRoot;
    const declared = getComputedStyle(documentMember("documentElement")).colorScheme;
    host.toggleAttribute("data-scheme", declared !== "normal"); // then the page's is inherited, also when it changes
    this.#followEnd();
  }

  #watchConnection(signal: AbortSignal): void {
    const update = (): void => {
      this.#setNotice(navigator.onLine ? "" : this.texts.offline);
      this.composer.setEnabled(navigator.onLine, "offline");
    };
    listen(window, "online", update, signal); // not now: a machine with loopback alone is "offline", and has just fetched this
    listen(window, "offline", update, signal);
  }

  #onKey(event: KeyboardEvent): void {
    if (event.isComposing || event.keyCode === 229) return; // Safari ends the composition before its last key
    const [target] = event.composedPath();
    if (event.key === "Escape") this.#escape(target as Element);
    if (event.key === "Tab") this.node.dispatchEvent(new CustomEvent("tab", { detail: event }));
    if (event.key !== "Enter" || event.shiftKey || target !== this.composer.field) return;
    event.preventDefault();
    this.composer.submit();
  }

  /** Closes the comment form that has the focus, or else a floating panel. */
  #escape(target: Element): void {
    const form = target.closest(".comment");
    if (form) form.dispatchEvent(new CustomEvent("dismiss"));
    else if (!this.settings.inline) this.handlers.close();
  }

  #head(): HTMLElement {
    const close = iconButton("close", this.texts.close, "M6 6l12 12M18 6L6 18");
    close.onclick = () => this.handlers.close();
    this.newChat.onclick = () => this.handlers.startNewChat();
    const label = element("p", { class: "label" }, this.texts.assistant);
    const head = element("div", { class: "head", part: "header" }, element("div", {}, this.#title, label), this.newChat);
    if (!this.settings.inline) head.append(close);
    return head;
  }

  #listen(): void {
    let before = 0;
    this.log.onscroll = () => {
      const end = this.log.scrollHeight - this.log.scrollTop - this.log.clientHeight < 40;
      if (end || this.log.scrollTop < before) this.#toEnd.hidden = this.#atEnd = end; // an answer that grows is no scrolling
      before = this.log.scrollTop;
    };
    this.#toEnd.onclick = () => {
      this.#atEnd = true;
      this.#followEnd();
      this.log.focus({ preventScroll: true });
    };
  }

  /** Keeps the end in view unless the visitor has scrolled up; once for all changes of a task, since it costs a layout. */
  #followEnd(): void {
    this.#following ||= window.setTimeout(() => {
      this.#following = 0;
      if (this.#atEnd) this.log.scrollTop = this.log.scrollHeight;
    });
  }
}
