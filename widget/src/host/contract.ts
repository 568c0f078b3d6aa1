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

/** What few launchers need, in a chunk of its own: the options for it, inline chats, and visitors who return. */
export interface MoreLauncher {
  extendLauncher(host: ChatElement, root: ShadowRoot, base: string): void;
}

/** Loads a file of the server at `base`. Browsers cache a failed import, so `failures` makes each retry's URL unique. */
export type Load = <Name extends "app" | "chunk-launcher">(base: string, name: Name, failures: number) => Promise<Name extends "app" ? App : MoreLauncher>;
