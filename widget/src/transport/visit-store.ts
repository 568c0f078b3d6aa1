/** Stores what the visitor's next page needs, where the developer chose, for one server and skill. */
import type { Persistence } from "../dom/settings.ts";
import { asString, parseJson, property, stringifyFields } from "./json.ts";

/** Each is empty if there is none. */
export interface Visit {
  /** The secret that resumes the conversation. */
  resume: string;
  /** Whether the panel is open, or the teaser or the option `open` was done with. */
  open: string;
  seen: string;
  /** The question that is not sent yet. */
  draft: string;
}

export class VisitStore {
  constructor(
    readonly persistence: Persistence,
    readonly name: string,
  ) {}

  read(): Visit {
    const text = attempt(() => this.#area()?.getItem(this.name)) ?? "";
    const stored = parseJson(text);
    const field = (name: string): string => asString(property(stored, name));
    // Releases before 0.3 stored the secret alone.
    return { resume: stored ? field("resume") : text, open: field("open"), seen: field("seen"), draft: field("draft") };
  }

  /** Stores these changes, or nothing if nothing is left; where storage is forbidden, all ends with the page. */
  write(changes: Partial<Visit>): void {
    const visit = { ...this.read(), ...changes };
    if (Object.values(visit).some(Boolean)) attempt(() => this.#area()?.setItem(this.name, stringifyFields(visit)));
    else {
      attempt(() => sessionStorage.removeItem(this.name));
      attempt(() => localStorage.removeItem(this.name));
    }
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
