/** Builds the chunk that counts down to when the server accepts requests again. */
import type { BusyPanel } from "../../chunks/contract.ts";

export const style = "";

/** See `Busy`. */
export function countDown({ texts, composer, announce }: BusyPanel, line: HTMLElement, button: HTMLButtonElement, end: number): () => void {
  const tick = (): void => {
    const remaining = Math.ceil((end - Date.now()) / 1000); // ticks are lost while a laptop sleeps
    line.textContent = remaining > 0 ? texts.wait(remaining) : texts.ready;
    button.disabled = remaining > 0;
    composer.setEnabled(remaining <= 0, "busy");
    if (remaining > 0) return;
    clearInterval(timer);
    announce(texts.ready);
  };
  const timer = setInterval(tick, 1000);
  tick();
  return () => {
    clearInterval(timer);
    composer.setEnabled(true, "busy");
  };
}
