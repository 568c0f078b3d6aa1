/** Takes the visitor's question: a text field with Send, or with Stop while a reply streams. */
import { element, iconButton } from "../dom/elements.ts";
import type { Texts } from "../texts/languages/en.ts";

export class Composer {
  readonly node: HTMLElement;
  readonly field: HTMLTextAreaElement;
  #send: HTMLButtonElement;
  #stop: HTMLButtonElement;
  #reasons = new Set<string>();
  /** The largest question in bytes; 0 before that is known. */
  limit = 0;

  constructor(
    texts: Texts,
    readonly send: (question: string) => void,
    stop: () => void,
  ) {
    const field = { rows: "1", "aria-label": texts.message, placeholder: texts.placeholder, enterkeyhint: "send" };
    this.field = element("textarea", field);
    this.#send = iconButton("send", texts.send, "M12 19V5M6 11l6-6 6 6", "submit");
    this.#stop = iconButton("stop", texts.stop, "M7.5 7.5h9v9h-9z");
    this.#stop.hidden = true;
    const row = element("div", { class: "composer", part: "composer" }, this.field, this.#send, this.#stop);
    this.node = element("form", {}, row, element("p", { class: "caution" }, texts.caution));
    this.node.onsubmit = (event) => {
      event.preventDefault();
      this.submit();
    };
    this.#stop.onclick = stop;
    this.field.oninput = () => this.#fitHeight();
  }

  setText(text: string): void {
    this.field.value = text;
    this.#fitHeight();
  }

  /** Appends text for the visitor to edit, on a new line after what is already written. */
  appendText(text: string): void {
    this.setText([this.field.value, text].filter(Boolean).join("\n"));
  }

  submit(): void {
    const question = this.field.value.trim();
    if (!question || this.#send.disabled || this.#send.hidden) return;
    this.setText("");
    this.node.dispatchEvent(new CustomEvent("sent"));
    this.send(question);
  }

  /** Allows sending once no `reason` is left that forbids it. */
  setEnabled(enabled: boolean, reason = ""): void {
    if (enabled) this.#reasons.delete(reason);
    else this.#reasons.add(reason);
    this.#send.disabled = [...this.#reasons].length > 0;
  }

  /** Whether sending is disabled, or a reply is streaming. */
  get busy(): boolean {
    return Boolean(this.#send.hidden) || this.#send.disabled;
  }

  /** Swaps Send for Stop while a reply streams, and moves the focus off the button that disappears. */
  setStreaming(streaming: boolean): void {
    const focused = (this.node.getRootNode() as ShadowRoot).activeElement;
    this.#send.hidden = streaming;
    this.#stop.hidden = !streaming;
    if (focused === this.#send || focused === this.#stop) this.focus();
  }

  focus(): void {
    this.field.focus({ preventScroll: true });
  }

  /** Resizes the field in browsers without `field-sizing`. */
  #fitHeight(): void {
    if (CSS.supports("field-sizing", "content")) return;
    this.field.style.height = "auto";
    this.field.style.height = `${this.field.scrollHeight}px`;
  }
}
