/** Builds the chunk for small screens: the panel fills them, holds the focus and keeps the page from scrolling. */
import { documentMember, listen } from "../../dom/document.ts";
import style from "./phone.css";

export { style };

declare class CloseWatcher {
  onclose: () => void;
  destroy(): void;
}

const SMALL = "(max-width: 480px), (max-height: 420px)";

/** See `Phone`. */
export function fillScreen(panel: HTMLElement, signal: AbortSignal, close: () => void): void {
  const still = new CSSStyleSheet();
  still.replaceSync("html{overflow:hidden!important}");
  let watcher: CloseWatcher | undefined;
  const sheets = documentMember("adoptedStyleSheets");
  const release = (): void => {
    watcher?.destroy();
    watcher = undefined;
    panel.removeAttribute("aria-modal");
    if (sheets.includes(still)) sheets.splice(sheets.indexOf(still), 1);
  };
  const fit = (): void => {
    const full = matchMedia(SMALL).matches;
    if (!full) release();
    else if (!panel.hasAttribute("aria-modal")) {
      panel.setAttribute("aria-modal", "true");
      sheets.push(still);
      if (typeof CloseWatcher !== "undefined") (watcher = new CloseWatcher()).onclose = close;
    }
    // A virtual keyboard covers the page without resizing it.
    const { height, offsetTop, scale } = visualViewport ?? { height: 0, offsetTop: 0, scale: 0 };
    const covered = full && scale === 1 && innerHeight - height > 60;
    panel.style.height = covered ? `${height}px` : "";
    panel.style.top = covered ? `${offsetTop}px` : "";
  };
  listen(visualViewport ?? window, "resize", fit, signal);
  listen(panel, "tab", (event) => panel.hasAttribute("aria-modal") && trapFocus(panel, (event as CustomEvent<KeyboardEvent>).detail), signal);
  signal.addEventListener("abort", release);
  fit();
}

/** Wraps the focus around at the first and last focusable element of `node`. */
function trapFocus(node: HTMLElement, event: KeyboardEvent): void {
  const candidates = node.querySelectorAll<HTMLElement>("button, textarea, a[href], [tabindex='0']");
  const focusable = [...candidates].filter((stop) => !stop.hidden && stop.getClientRects().length && !(stop as HTMLButtonElement).disabled);
  const [from, to] = event.shiftKey ? [focusable[0], focusable.at(-1)] : [focusable.at(-1), focusable[0]];
  const current = event.composedPath()[0];
  if (current !== from && !(event.shiftKey && current === node)) return;
  event.preventDefault();
  to?.focus();
}
