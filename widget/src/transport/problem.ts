/** Classifies failures by what the visitor can do about them. */
import { asString, parseJson, property } from "./json.ts";

export type ProblemKind = "offline" | "unreachable" | "denied" | "missing" | "busy" | "refused" | "failed" | "cut";

/** The code of a spent budget, whose reset is too far away to wait for. */
export const BUDGET_EXCEEDED = "budget_exceeded";

/** A reply that failed or broke off; `detail` is the server's message, `retryAfter` a wait in seconds or 0. */
export class Problem extends Error {
  constructor(
    readonly kind: ProblemKind,
    readonly detail = "",
    readonly retryAfter = 0,
    readonly code = "",
  ) {
    super(kind);
  }
}

/** Wraps an unexpected error; returns a Problem as it is. */
export function toProblem(error: unknown): Problem {
  return error instanceof Problem ? error : new Problem("failed", String(error));
}

/** Classifies a response whose status is not 2xx. */
export async function responseProblem(response: Response): Promise<Problem> {
  const { status } = response;
  const error = property(parseJson(await response.text().catch(() => "")), "error");
  const code = asString(property(error, "code"));
  if (status === 401 || status === 403) return new Problem("denied", "", 0, code);
  if (status === 404) return new Problem("missing", "", 0, code);
  const seconds = code === BUDGET_EXCEEDED ? 0 : parseRetryAfter(response.headers.get("Retry-After"));
  if (status === 429 || status === 503) return new Problem("busy", "", seconds, code);
  if (status === 409) return new Problem("busy", "", 3, code);
  if (status >= 500) return new Problem("failed", "", 0, code);
  return new Problem("refused", asString(property(error, "message")), 0, code);
}

/** Parses a Retry-After header, in seconds or as a date, into 1 to 3600 seconds; 5 if it is absent or malformed. */
export function parseRetryAfter(header: string | null, now = Date.now()): number {
  const seconds = header === null || header.trim() === "" ? NaN : Number(header);
  const remaining = Number.isNaN(seconds) ? (Date.parse(header ?? "") - now) / 1000 : seconds;
  return Number.isNaN(remaining) ? 5 : Math.min(3600, Math.max(1, Math.ceil(remaining)));
}
