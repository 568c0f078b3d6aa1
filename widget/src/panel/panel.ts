/** The panel: header, log, notices, status and composer. It shows and reports what the visitor does, and decides nothing. */
import { Answer, unseen, type Around } from "./answer.ts";
import { Composer } from "./composer.ts";
import { button, drop, element, listen } from "../dom/elements.ts";
import { keep, trap } from "./keyboard.ts";
import type { Settings } from "../dom/settings.ts";
import type { Texts } from "../texts/select.ts";

/** What the visitor can do. */
export interface Actions extends Pick<Around, "rate" | "again"> {
  send(question: string): void;
  stop(): void;
  close(): void;
  fresh(): void;
}

const FULL_SCREEN = "(max-width: 480px), (max-height: 420px)";

export class Panel {
  readonly node: HTMLElement;
  readonly composer: Composer;
  readonly around: Around;
  #title: HTMLElement;
  #log: HTMLElement;
  #fresh: HTMLButtonElement;
  #latest: HTMLButtonElement;
  #notice = element("p", { class: "notice" });
  #status = element("div", { role: "status", class: "unseen" });
  #starters: HTMLElement | undefined;
  #following = true;

  constructor(
    readonly texts: Texts,
    readonly settings: Settings,
    readonly actions: Actions,
  ) {
    const { rate, again } = actions;
    this.around = { texts, images: [], rate, again, announce: (text) => this.announce(text), follow: () => this.#follow() };
    this.#title = element("h2", { id: "title" }, settings.title || texts.title);
    const log = { class: "log", role: "log", "aria-live": "off", "aria-label": texts.conversation, tabindex: "0" };
    this.#log = element("div", log);
    this.#fresh = button("fresh", texts.fresh, "M12 5v14M5 12h14");
    this.#latest = button("latest", texts.latest, "M12 5v14M6 13l6 6 6-6");
    this.composer = new Composer(texts, actions.send, actions.stop);
    const names = ["panel", settings.inline ? "within" : "above", settings.left ? "left" : ""].join(" ");
    const direction = settings.direction || (texts.rightToLeft ? "rtl" : "ltr");
    const role = settings.inline ? "region" : "dialog";
    this.node = element("div", { class: names, role, "aria-labelledby": "title", lang: texts.code, dir: direction, tabindex: "-1" });
    const foot = element("div", { class: "foot" }, this.#latest, this.#notice, this.composer.node);
    this.node.append(this.#head(), this.#log, foot, this.#status);
    this.#notice.hidden = this.#latest.hidden = this.#fresh.hidden = true;
    this.#listen();
  }

  /** Show the title, the greeting and the questions to start with; an empty conversation begins so. */
  introduce(title: string, greeting: string, starters: string[]): void {
    this.#title.textContent = title || this.texts.title;
    this.#log.replaceChildren();
    if (greeting) {
      const answer = new Answer(this.around);
      answer.finish(greeting);
      this.#log.append(answer.node);
    }
    this.#starters = element("div", { class: "starters", role: "group", "aria-label": this.texts.starters });
    for (const starter of starters) {
      const choice = element("button", { type: "button", class: "starter", dir: "auto" }, starter);
      choice.addEventListener("click", () => {
        if (this.composer.busy) return;
        this.composer.focus();
        this.actions.send(starter);
      });
      this.#starters.append(choice);
    }
    if (starters.length) this.#log.append(this.#starters);
    this.#fresh.hidden = true;
  }

  question(text: string): HTMLElement {
    drop(this.#starters);
    this.#fresh.hidden = false;
    this.#following = true;
    const node = element("div", { class: "question", dir: "auto" }, unseen(this.texts.you), text);
    this.#log.append(node);
    this.#follow();
    return node;
  }

  /** A new answer at the end of the log. */
  answer(): Answer {
    const answer = new Answer(this.around);
    this.#log.append(answer.node);
    this.#follow();
    return answer;
  }

  writing(now: boolean): void {
    this.composer.writing(now);
    this.#log.setAttribute("aria-busy", String(now));
  }

  /** A line above the composer, or none. */
  #say(text: string): void {
    this.#notice.textContent = text;
    this.#notice.hidden = !text;
    if (text) this.announce(text);
  }

  /** Say it once to screen readers. */
  announce(text: string): void {
    this.#status.textContent = text;
  }

  /** To the field; where that would bring up a keyboard over the greeting, to the panel. */
  focus(): void {
    if (matchMedia("(pointer: coarse)").matches) this.node.focus({ preventScroll: true });
    else this.composer.focus();
  }

  /** While it is shown: keys stay within, and on a small screen, which it fills, the focus does too. */
  attend(signal: AbortSignal): void {
    keep(this.node, signal, (event) => this.#key(event));
    const fit = (): void => {
      const filled = matchMedia(FULL_SCREEN).matches && !this.settings.inline;
      if (filled) this.node.setAttribute("aria-modal", "true");
      else this.node.removeAttribute("aria-modal");
      // The keyboard of a phone covers the page without resizing it.
      const { height, offsetTop, scale } = visualViewport ?? { height: 0, offsetTop: 0, scale: 0 };
      const covered = filled && scale === 1 && innerHeight - height > 60;
      this.node.style.height = covered ? `${height}px` : "";
      this.node.style.top = covered ? `${offsetTop}px` : "";
    };
    listen(visualViewport ?? window, "resize", fit, signal);
    fit();
    this.#watchConnection(signal);
    this.#follow();
  }

  #watchConnection(signal: AbortSignal): void {
    const say = (): void => this.#say(navigator.onLine ? "" : this.texts.offline);
    listen(window, "online", say, signal);
    listen(window, "offline", say, signal);
    say();
  }

  #key(event: KeyboardEvent): void {
    if (event.isComposing || event.keyCode === 229) return; // Safari ends the composition before its last key
    const [target] = event.composedPath();
    if (event.key === "Escape") this.#escape(target as Element);
    if (event.key === "Tab" && this.node.hasAttribute("aria-modal")) trap(this.node, event);
    if (event.key !== "Enter" || event.shiftKey || target !== this.composer.field) return;
    event.preventDefault();
    this.composer.submit();
  }

  /** Leave the innermost of what is open. */
  #escape(target: Element): void {
    const form = target.closest(".comment");
    if (form) form.dispatchEvent(new Event("dismiss"));
    else if (!this.settings.inline) this.actions.close();
  }

  #head(): HTMLElement {
    const close = button("close", this.texts.close, "M6 6l12 12M18 6L6 18");
    close.onclick = () => this.actions.close();
    this.#fresh.onclick = () => this.actions.fresh();
    const label = element("p", { class: "label" }, this.texts.assistant);
    const head = element("div", { class: "head" }, element("div", {}, this.#title, label), this.#fresh);
    if (!this.settings.inline) head.append(close);
    return head;
  }

  #listen(): void {
    this.#log.addEventListener("scroll", () => {
      this.#following = this.#log.scrollHeight - this.#log.scrollTop - this.#log.clientHeight < 40;
      this.#latest.hidden = this.#following;
    });
    this.#latest.addEventListener("click", () => {
      this.#following = true;
      this.#follow();
      this.#log.focus({ preventScroll: true });
    });
  }

  /** Keep the end in view, unless the visitor has scrolled up to read. */
  #follow(): void {
    if (this.#following) this.#log.scrollTop = this.#log.scrollHeight;
  }
}
