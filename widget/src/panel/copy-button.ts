/** Copies a text, by the clipboard or, where a page may not use that, by a selection. */
import { drop, element, icon, page } from "../dom/elements.ts";
import type { Texts } from "../texts/select.ts";

const COPY = "M9 9h11v11H9zM15 9V4H4v11h5";
const DONE = "M5 12.5l4.5 4.5L19 7.5";
const SHOWN_MS = 2000;

interface Around {
  texts: Texts;
  announce(text: string): void;
}

/** A button that copies what `text` gives, and says for a while that it did. */
export function copyButton(around: Around, label: string, text: () => string): HTMLButtonElement {
  const { texts } = around;
  const made = element("button", { type: "button", class: "round small copy", "aria-label": label, title: label }, icon(COPY));
  made.addEventListener("click", async () => {
    const copied = await copy(text(), made);
    const words = copied ? texts.copied : texts.uncopied;
    made.replaceChildren(icon(copied ? DONE : COPY));
    made.title = words;
    around.announce(words);
    setTimeout(() => {
      made.replaceChildren(icon(COPY));
      made.title = label;
    }, SHOWN_MS);
  });
  return made;
}

async function copy(text: string, beside: HTMLElement): Promise<boolean> {
  try {
    await navigator.clipboard.writeText(text);
    return true;
  } catch {
    const field = element("textarea", { class: "unseen" });
    field.value = text;
    beside.after(field);
    field.select();
    const copied = page("execCommand")("copy");
    drop(field);
    beside.focus();
    return copied;
  }
}
