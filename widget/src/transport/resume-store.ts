/** Keeps the secret that brings a conversation back, where the page's developer said, for this server and skill only. */
import type { Persist } from "../dom/settings.ts";

export class Store {
  constructor(
    readonly persist: Persist,
    readonly name: string,
  ) {}

  get(): string {
    return attempt(() => this.#area()?.getItem(this.name)) ?? "";
  }

  /** Where the browser forbids storage, the conversation ends with the page. */
  set(value: string): void {
    attempt(() => this.#area()?.setItem(this.name, value));
  }

  clear(): void {
    attempt(() => sessionStorage.removeItem(this.name));
    attempt(() => localStorage.removeItem(this.name));
  }

  #area(): Storage | null {
    if (this.persist === "none") return null;
    return this.persist === "local" ? localStorage : sessionStorage;
  }
}

function attempt<Value>(action: () => Value): Value | undefined {
  try {
    return action();
  } catch {
    return undefined;
  }
}
