/** The field in which the visitor writes, with Send, or Stop while an answer is being written. */
import { button, element } from "../dom/elements.ts";
import type { Texts } from "../texts/select.ts";

export class Composer {
  readonly node: HTMLElement;
  readonly field: HTMLTextAreaElement;
  #send: HTMLButtonElement;
  #stop: HTMLButtonElement;

  constructor(
    texts: Texts,
    readonly send: (question: string) => void,
    stop: () => void,
  ) {
    const field = { rows: "1", "aria-label": texts.message, placeholder: texts.placeholder, enterkeyhint: "send" };
    this.field = element("textarea", field);
    this.#send = button("send", texts.send, "M12 19V5M6 11l6-6 6 6", "submit");
    this.#stop = button("stop", texts.stop, "M7.5 7.5h9v9h-9z");
    this.#stop.hidden = true;
    const row = element("div", { class: "composer" }, this.field, this.#send, this.#stop);
    this.node = element("form", {}, row, element("p", { class: "caution" }, texts.caution));
    this.node.addEventListener("submit", (event) => {
      event.preventDefault();
      this.submit();
    });
    this.#stop.onclick = stop;
    this.field.addEventListener("input", () => this.#fit());
  }

  /** Give the visitor a text to go on with, after what is written there. */
  put(text: string): void {
    this.field.value = [this.field.value, text].filter(Boolean).join("\n");
    this.#fit();
  }

  submit(): void {
    const question = this.field.value.trim();
    if (!question || this.#send.disabled || this.#send.hidden) return;
    this.field.value = "";
    this.#fit();
    this.send(question);
  }

  /** Whether the visitor may send. */
  enable(now: boolean): void {
    this.#send.disabled = !now;
  }

  get busy(): boolean {
    return Boolean(this.#send.hidden) || this.#send.disabled;
  }

  /** While an answer is being written, Stop stands in the place of Send; the focus does not get lost with either. */
  writing(now: boolean): void {
    const focused = (this.node.getRootNode() as ShadowRoot).activeElement;
    this.#send.hidden = now;
    this.#stop.hidden = !now;
    if (focused === this.#send || focused === this.#stop) this.focus();
  }

  focus(): void {
    this.field.focus({ preventScroll: true });
  }

  /** For browsers that do not grow the field by themselves. */
  #fit(): void {
    if (CSS.supports("field-sizing", "content")) return;
    this.field.style.height = "auto";
    this.field.style.height = `${this.field.scrollHeight}px`;
  }
}
