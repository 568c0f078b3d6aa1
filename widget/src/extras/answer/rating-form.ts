/** Asks a visitor why an answer was good or bad. */
import { detach, element } from "../../dom/elements.ts";
import type { Surroundings } from "../../chunks/contract.ts";

/** The server accepts 1,000 bytes, and a UTF-16 unit takes at most three in UTF-8. */
const MAX_COMMENT_LENGTH = "333";

/**
 * Creates the form, with reasons to choose from if the rating was `down`; `store` resolves to whether the server stored them.
 * Escape or a stored comment closes it and returns the focus to `rated`.
 */
export function ratingForm({ texts, announce }: Surroundings, down: boolean, rated: HTMLElement, store: (comment: string, reasons: string[]) => Promise<boolean>): HTMLElement {
  const chosen = new Set<string>();
  const chips = Object.entries(texts.reasons).map(([reason, label]) => {
    const chip = element("button", { type: "button", class: "chip", "aria-pressed": "false" }, label);
    chip.onclick = () => {
      if (!chosen.delete(reason)) chosen.add(reason);
      chip.setAttribute("aria-pressed", String(chosen.has(reason)));
    };
    return chip;
  });
  const field = element("textarea", { rows: "2", maxlength: MAX_COMMENT_LENGTH, "aria-label": texts.comment, placeholder: texts.comment });
  const form = element("form", { class: "comment" }, field, element("button", { class: "retry" }, texts.sendComment));
  if (down) form.prepend(element("div", { class: "chips", role: "group", "aria-label": texts.whyBad }, ...chips));
  form.onsubmit = async (event) => {
    event.preventDefault();
    detach(form.querySelector("p"));
    if (!(await store(field.value.trim(), [...chosen]))) return;
    announce(texts.thanks);
    form.replaceWith(element("p", { class: "hint" }, texts.thanks));
    rated.focus();
  };
  form.addEventListener("dismiss", () => {
    detach(form);
    rated.focus();
  });
  return form;
}
