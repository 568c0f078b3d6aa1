/** Types shared by page, loader and app. A cached loader may meet a newer app, so extend them only compatibly. */

export interface Chat {
  /** Runs a method of the page's API; unknown names are ignored. */
  call(method: string, values: unknown[]): unknown;
}

export interface App {
  /** Builds a chat beside its launcher. The first four parameters are fixed across releases. */
  start(root: ShadowRoot, launcher: HTMLButtonElement, base: string, skill: string, fetcher: typeof fetch): Promise<Chat>;
}

export interface ChatElement extends HTMLElement {
  /** Runs a method of the page's API, loading the app if the method needs it. */
  call(method: string, ...values: unknown[]): unknown;
}

export interface Api {
  /** Creates a chat (`init`) or calls a method of the current one. */
  (method: string, ...values: unknown[]): unknown;
  version: string;
  /** The current chat: the latest one that `init` created. */
  host?: ChatElement | null;
}

/** Loads the app of the server at `base`. Browsers cache a failed import, so `failures` makes each retry's URL unique. */
export type LoadApp = (base: string, failures: number) => Promise<App>;
