/** Puts a problem into words for the visitor. */
import type { Texts } from "../texts/languages/en.ts";
import { BUDGET_EXCEEDED, type Problem } from "../transport/problem.ts";

/** Returns the message for a problem; `received` is what had arrived of the reply. */
export function problemMessage({ kind, detail, retryAfter, code }: Problem, texts: Texts, received: string): string {
  if (code === BUDGET_EXCEEDED) return texts.budget;
  if (retryAfter) return texts.wait(retryAfter);
  if (received && kind !== "failed") return texts.incomplete;
  if (code === "context_length_exceeded") return texts.tooLong;
  // The server's own sentence, in English, helps only where the visitor can change the question.
  return [texts.problems[kind], kind === "refused" && texts.code === "en" && detail].filter(Boolean).join(" ");
}
