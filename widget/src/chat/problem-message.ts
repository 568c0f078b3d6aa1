/** Puts a problem into words for the visitor. */
import type { Texts } from "../texts/en.ts";
import { BUDGET_EXCEEDED, type Problem } from "../transport/problem.ts";

/** Returns the message for a problem; `received` is what had arrived of the reply. */
export function problemMessage({ kind, detail, retryAfter, code }: Problem, texts: Texts, received: string): string {
  if (code === BUDGET_EXCEEDED) return texts.budget;
  if (retryAfter) return texts.wait(retryAfter);
  if (received && kind !== "failed") return texts.incomplete;
  // The server's own sentence helps only where the visitor can change the question.
  return [texts.problems[kind], kind === "refused" && detail].filter(Boolean).join(" ");
}
