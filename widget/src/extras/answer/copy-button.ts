/** Copies text and HTML through the clipboard API or, where the page may not use it, text through a selection. */
import { documentMember } from "../../dom/document.ts";
import { detach, element, icon, iconButton } from "../../dom/elements.ts";
import type { Surroundings } from "../../chunks/contract.ts";

const COPY = "M9 9h11v11H9zM15 9V4H4v11h5";
const DONE = "M5 12.5l4.5 4.5L19 7.5";
const CONFIRMATION_MS = 2000;

/** Creates a button that copies what `text` and `html` return and briefly confirms it. */
export function copyButton({ texts, announce }: Surroundings, label: string, text: () => string, html = (): string => ""): HTMLButtonElement {
  const button = iconButton("small copy", label, COPY);
  button.onclick = async () => {
    const copied = await copy(text(), html(), button);
    const message = copied ? texts.copied : texts.uncopied;
    button.replaceChildren(icon(copied ? DONE : COPY));
    button.title = message;
    announce(message);
    setTimeout(() => {
      button.replaceChildren(icon(COPY));
      button.title = label;
    }, CONFIRMATION_MS);
  };
  return button;
}

/** Copies `text`, with `html` if there is any; the fallback selects the text in a hidden field after `button`, which then gets the focus back. */
async function copy(text: string, html: string, button: HTMLElement): Promise<boolean> {
  try {
    if (html) await navigator.clipboard.write([new ClipboardItem(typed("text/plain", text, "text/html", html))]);
    else await navigator.clipboard.writeText(text);
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

/** Makes blobs by type from pairs of type and content. */
function typed(...pairs: string[]): Record<string, Blob> {
  const blob = (at: number): Blob => new Blob([pairs[at + 1]!], { __proto__: null, type: pairs[at] } as BlobPropertyBag);
  return { __proto__: null!, [pairs[0]!]: blob(0), [pairs[2]!]: blob(2) };
}
