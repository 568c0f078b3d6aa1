/** Builds the chunk that lets a visitor undo "New chat" until the next question. */
import type { UndoPanel } from "../../chunks/contract.ts";
import { detach, element } from "../../dom/elements.ts";

export const style = ".undo{display:flex;align-items:center;justify-content:space-between;gap:10px;margin:0;color:var(--soft);font-size:.9em}";

/** See `Undo`. */
export function clearLog({ log, newChat, texts, announce }: UndoPanel, introduce: () => void, done: (undone: boolean) => void): () => void {
  const turns = [...log.childNodes];
  const leaving = new AbortController();
  const finish = (undone: boolean): void => {
    if (leaving.signal.aborted) return;
    leaving.abort();
    detach(line);
    if (undone) log.replaceChildren(...turns);
    newChat.hidden = !undone;
    done(undone);
  };
  const button = element("button", { type: "button", class: "retry" }, texts.undo);
  button.onclick = () => finish(true);
  const line = element("p", { class: "undo" }, texts.begun, button);
  introduce();
  log.prepend(line);
  announce(`${texts.begun} ${texts.undo}`);
  addEventListener("pagehide", () => finish(false), { signal: leaving.signal });
  return () => finish(false);
}
