/** What can go wrong between the visitor and an answer, told apart by what the visitor can do about it. */
export type Kind = "offline" | "unreachable" | "denied" | "missing" | "busy" | "refused" | "failed" | "cut";

/** An answer that did not come, or not whole; `seconds` is how long to wait, `detail` is the server's own sentence. */
export class Problem extends Error {
  constructor(
    readonly kind: Kind,
    readonly detail = "",
    readonly seconds = 0,
  ) {
    super(kind);
  }
}

/** The problem that a response other than 2xx stands for. */
export async function problemOf(response: Response): Promise<Problem> {
  const { status } = response;
  if (status === 401 || status === 403) return new Problem("denied");
  if (status === 404) return new Problem("missing");
  if (status === 429 || status === 503) return new Problem("busy", "", waiting(response.headers.get("Retry-After")));
  if (status >= 500) return new Problem("failed");
  return new Problem("refused", sentence(await response.json().catch(() => null)));
}

/** Seconds to wait by a Retry-After header, which holds seconds or a date; between 1 and 3600, and 5 if it says nothing. */
export function waiting(header: string | null, now = Date.now()): number {
  const seconds = header === null || header.trim() === "" ? NaN : Number(header);
  const until = Number.isNaN(seconds) ? (Date.parse(header ?? "") - now) / 1000 : seconds;
  return Number.isNaN(until) ? 5 : Math.min(3600, Math.max(1, Math.ceil(until)));
}

/** The sentence in an error body of OpenAI's shape, if it is one. */
function sentence(body: unknown): string {
  const message = (body as { error?: { message?: unknown } } | null)?.error?.message;
  return typeof message === "string" ? message : "";
}
