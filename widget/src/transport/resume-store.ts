/** Stores the secret that resumes a conversation, where the developer chose, for one server and skill. */
import type { Persistence } from "../dom/settings.ts";

export class ResumeStore {
  constructor(
    readonly persistence: Persistence,
    readonly name: string,
  ) {}

  get(): string {
    return attempt(() => this.#area()?.getItem(this.name)) ?? "";
  }

  /** Stores the secret; where storage is forbidden, the conversation ends with the page. */
  set(value: string): void {
    attempt(() => this.#area()?.setItem(this.name, value));
  }

  clear(): void {
    attempt(() => sessionStorage.removeItem(this.name));
    attempt(() => localStorage.removeItem(this.name));
  }

  #area(): Storage | null {
    if (this.persistence === "none") return null;
    return this.persistence === "local" ? localStorage : sessionStorage;
  }
}

function attempt<Value>(action: () => Value): Value | undefined {
  try {
    return action();
  } catch {
    return undefined;
  }
}
