/** Counts down to when the server accepts requests again, and blocks sending until then. */
import type { Panel } from "../panel/panel.ts";

/** Starts the countdown; returns a function that cancels it. */
export function startCountdown(panel: Panel, line: HTMLElement, button: HTMLButtonElement, seconds: number): () => void {
  const { texts, composer } = panel;
  const end = Date.now() + seconds * 1000; // ticks are lost while a laptop sleeps or a page is hidden
  const tick = (): void => {
    const remaining = Math.ceil((end - Date.now()) / 1000);
    line.textContent = remaining > 0 ? texts.wait(remaining) : texts.ready;
    button.disabled = remaining > 0;
    composer.setEnabled(remaining <= 0);
    if (remaining > 0) return;
    clearInterval(timer);
    panel.announce(texts.ready);
  };
  const timer = setInterval(tick, 1000);
  panel.announce(texts.wait(seconds));
  tick();
  return () => {
    clearInterval(timer);
    composer.setEnabled(true);
  };
}
