/** Keys pressed in the panel are the panel's: a page's shortcuts must not fire while the visitor types. */
import { listen } from "../dom/elements.ts";

/**
 * Hand `key` every keydown within `node`. The window hears an event first, so neither the page's listeners, which would see
 * it come from a mere element, nor any within get it.
 */
export function keep(node: HTMLElement, signal: AbortSignal, key: (event: KeyboardEvent) => void): void {
  const heard = (event: Event): void => {
    const path = event.composedPath();
    if (!path.includes(node)) return;
    event.stopImmediatePropagation();
    if (event.type === "keydown") key(event as KeyboardEvent);
  };
  for (const name of ["keydown", "keypress", "keyup", "focusin", "wheel", "touchmove"]) listen(window, name, heard, signal);
}

/** Turn the focus around at the ends of `node`, which fills the screen. */
export function trap(node: HTMLElement, event: KeyboardEvent): void {
  const all = node.querySelectorAll<HTMLElement>("button, textarea, a[href], [tabindex='0']");
  const seen = [...all].filter((stop) => !stop.hidden && stop.getClientRects().length && !(stop as HTMLButtonElement).disabled);
  const [from, to] = event.shiftKey ? [seen[0], seen.at(-1)] : [seen.at(-1), seen[0]];
  const at = event.composedPath()[0];
  if (at !== from && !(event.shiftKey && at === node)) return;
  event.preventDefault();
  to?.focus();
}
