/** Copies text through the clipboard API or, where the page may not use it, through a selection. */
import { documentMember } from "../dom/document.ts";
import { detach, element, icon, iconButton } from "../dom/elements.ts";
import type { Texts } from "../texts/en.ts";

const COPY = "M9 9h11v11H9zM15 9V4H4v11h5";
const DONE = "M5 12.5l4.5 4.5L19 7.5";
const CONFIRMATION_MS = 2000;

interface Environment {
  texts: Texts;
  announce(text: string): void;
}

/** Creates a button that copies what `text` returns and briefly confirms it. */
export function copyButton(environment: Environment, label: string, text: () => string): HTMLButtonElement {
  const { texts } = environment;
  const button = iconButton("small copy", label, COPY);
  button.onclick = async () => {
    const copied = await copy(text(), button);
    const message = copied ? texts.copied : texts.uncopied;
    button.replaceChildren(icon(copied ? DONE : COPY));
    button.title = message;
    environment.announce(message);
    setTimeout(() => {
      button.replaceChildren(icon(COPY));
      button.title = label;
    }, CONFIRMATION_MS);
  };
  return button;
}

/** Copies `text`; the fallback selects it in a hidden field after `button`, which then gets the focus back. */
async function copy(text: string, button: HTMLElement): Promise<boolean> {
  try {
    await navigator.clipboard.writeText(text);
    return true;
  } catch {
    const field = element("textarea", { class: "unseen" });
    field.value = text;
    button.after(field);
    field.select();
    const copied = documentMember("execCommand")("copy");
    detach(field);
    button.focus();
    return copied;
  }
}
