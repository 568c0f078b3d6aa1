/** Builds the chunk that keeps the draft of a question and tells when it becomes too long. */
import type { DraftStore, FieldComposer } from "../../chunks/contract.ts";
import { detach, element } from "../../dom/elements.ts";
import type { Texts } from "../../texts/languages/en.ts";

export const style = ".limit{margin:6px 0 0;color:var(--soft);font-size:.8125em;text-align:end}.limit.over{color:var(--alarm)}";

const SAVE_MS = 300;
/** Events of typing that would tell the page's listeners what is written; ones that capture on the window come first all the same. */
const TELLING = ["beforeinput", "input", "change", "paste", "copy", "cut", "compositionstart", "compositionupdate", "compositionend"];
/** The limit is mentioned from this share on. */
const NEAR = 0.8;

/** See `Field`. */
export function watchField(composer: FieldComposer, texts: Texts, store: DraftStore): void {
  const { node, field } = composer;
  const left = element("p", { class: "limit", role: "status" });
  let timer = 0;
  const measure = (): void => {
    const over = new TextEncoder().encode(field.value).length - composer.limit;
    const near = composer.limit > 0 && over > composer.limit * (NEAR - 1);
    // Bytes beyond the limit are shown as characters of this text, which the visitor can count.
    const characters = Math.ceil((Math.abs(over) * field.value.length) / (over + composer.limit));
    if (!near) detach(left);
    else if (!left.isConnected) node.append(left);
    left.textContent = near ? (over > 0 ? texts.over(characters) : texts.left(characters)) : "";
    left.className = over > 0 ? "limit over" : "limit";
    composer.setEnabled(!near || over <= 0, "length");
  };
  const save = (): void => {
    clearTimeout(timer);
    store.write({ draft: field.value });
  };
  field.addEventListener("input", () => {
    measure();
    clearTimeout(timer);
    timer = window.setTimeout(save, SAVE_MS);
  });
  node.addEventListener("sent", () => {
    save();
    measure();
  });
  for (const name of TELLING) node.addEventListener(name, (event) => event.stopPropagation());
  const { draft } = store.read();
  if (draft && !field.value) composer.setText(draft);
  else if (field.value) save();
  measure();
}
