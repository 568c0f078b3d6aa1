/** Counts down to when the server said that it may be asked again; until then nothing can be sent. */
import type { Panel } from "../panel/panel.ts";

/** Returns what ends the waiting early. */
export function waitFor(panel: Panel, line: HTMLElement, button: HTMLButtonElement, seconds: number): () => void {
  const { texts, composer } = panel;
  const end = Date.now() + seconds * 1000; // ticks fail to come while a laptop sleeps or a page is hidden
  const tick = (): void => {
    const left = Math.ceil((end - Date.now()) / 1000);
    line.textContent = left > 0 ? texts.wait(left) : texts.ready;
    button.disabled = left > 0;
    composer.enable(left <= 0);
    if (left > 0) return;
    clearInterval(timer);
    panel.announce(texts.ready);
  };
  const timer = setInterval(tick, 1000);
  panel.announce(texts.wait(seconds));
  tick();
  return () => {
    clearInterval(timer);
    composer.enable(true);
  };
}
