/** What can go wrong between the visitor and an answer, told apart by what the visitor can do about it. */
import { member, read, text } from "./json.ts";
import type { Texts } from "../texts/en.ts";

export type Kind = "offline" | "unreachable" | "denied" | "missing" | "busy" | "refused" | "failed" | "cut";

/** The skill's budget is used up: nobody waits for the next one on a page. */
const BUDGET = "budget_exceeded";

/** An answer that did not come, or not whole; `seconds` is how long to wait, `detail` the server's own sentence or code. */
export class Problem extends Error {
  constructor(
    readonly kind: Kind,
    readonly detail = "",
    readonly seconds = 0,
    readonly code = "",
  ) {
    super(kind);
  }
}

export function asProblem(error: unknown): Problem {
  return error instanceof Problem ? error : new Problem("failed", String(error));
}

/** What is said to the visitor, of whose answer `text` has come. */
export function wordsOf({ kind, detail, seconds, code }: Problem, texts: Texts, text: string): string {
  if (code === BUDGET) return texts.budget;
  if (seconds) return texts.wait(seconds);
  if (text && kind !== "failed") return texts.incomplete;
  // The server's own sentence helps where the visitor can act on it.
  return [texts.problems[kind], kind === "refused" && detail].filter(Boolean).join(" ");
}

/** The problem that a response other than 2xx stands for. */
export async function problemOf(response: Response): Promise<Problem> {
  const { status } = response;
  const error = member(read(await response.text().catch(() => "")), "error");
  const code = text(member(error, "code"));
  if (status === 401 || status === 403) return new Problem("denied", "", 0, code);
  if (status === 404) return new Problem("missing", "", 0, code);
  const seconds = code === BUDGET ? 0 : waiting(response.headers.get("Retry-After"));
  if (status === 429 || status === 503) return new Problem("busy", "", seconds, code);
  if (status === 409) return new Problem("busy", "", 3, code);
  if (status >= 500) return new Problem("failed", "", 0, code);
  return new Problem("refused", text(member(error, "message")), 0, code);
}

/** Seconds to wait by a Retry-After header, which holds seconds or a date; between 1 and 3600, and 5 if it says nothing. */
export function waiting(header: string | null, now = Date.now()): number {
  const seconds = header === null || header.trim() === "" ? NaN : Number(header);
  const until = Number.isNaN(seconds) ? (Date.parse(header ?? "") - now) / 1000 : seconds;
  return Number.isNaN(until) ? 5 : Math.min(3600, Math.max(1, Math.ceil(until)));
}
