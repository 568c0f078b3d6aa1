/** Keeps the panel's key and focus events from the page, whose shortcuts must not fire while the visitor types. */
import { listen } from "../dom/document.ts";

/** Hands keydown events within `node` to `onKey`. Listens on the window, ahead of every other listener, and stops them there. */
export function captureKeys(node: HTMLElement, signal: AbortSignal, onKey: (event: KeyboardEvent) => void): void {
  const capture = (event: Event): void => {
    const path = event.composedPath();
    if (!path.includes(node)) return;
    event.stopImmediatePropagation();
    if (event.type === "keydown") onKey(event as KeyboardEvent);
  };
  for (const name of ["keydown", "keypress", "keyup", "focusin", "wheel", "touchmove"]) listen(window, name, capture, signal);
}
