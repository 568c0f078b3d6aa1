/** Shows the panel instead of the launcher, or the launcher, and returns the focus. */
import { documentMember } from "../dom/document.ts";
import type { Panel } from "../panel/panel.ts";
import type { Client } from "../transport/client.ts";

export class Visibility {
  /** Aborted when the panel closes; undefined while it is closed. */
  #open: AbortController | undefined;
  #focusedBefore: HTMLElement | null = null;

  constructor(
    readonly root: ShadowRoot,
    readonly launcher: HTMLButtonElement,
    readonly panel: Panel,
    readonly client: Client,
  ) {}

  get isOpen(): boolean {
    return this.#open !== undefined;
  }

  open(): void {
    const active = documentMember("activeElement");
    this.#focusedBefore = active instanceof HTMLElement && active !== this.root.host ? active : null;
    this.#open = new AbortController();
    this.#show(true);
    this.#remember("yes");
    this.panel.activate(this.#open.signal);
  }

  /** Closes the panel; returns a function that moves the focus out of it, unless the visitor is elsewhere. */
  close(): () => void {
    const hadFocus = this.root.activeElement;
    this.hide();
    this.#remember("");
    const before = this.#focusedBefore;
    const target = before?.isConnected && before !== documentMember("body") ? before : this.launcher;
    return () => hadFocus && target.focus({ preventScroll: true });
  }

  /** Hides the panel of an element that left the page. */
  hide(): void {
    this.#open?.abort();
    this.#open = undefined;
    this.#show(false);
  }

  #show(visible: boolean): void {
    const host = this.root.host as HTMLElement;
    const { inline, topLayer } = this.client.settings;
    if (!inline && topLayer) {
      host.popover = visible ? "manual" : null; // the top layer: nothing on the page can cover the panel
      if (visible) host.showPopover?.();
    }
    this.panel.node.hidden = !visible;
    this.launcher.hidden = visible;
    if (visible) this.launcher.removeAttribute("aria-description");
    this.launcher.setAttribute("aria-expanded", String(visible));
  }

  /** Tells the visitor's next page whether the panel is open. */
  #remember(open: string): void {
    if (!this.client.settings.inline) this.client.store.write({ open });
  }
}
