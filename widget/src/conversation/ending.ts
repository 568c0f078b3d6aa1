/** Translates the server's finish reasons. */
import { Problem } from "../transport/problem.ts";

/** How a reply ended for the visitor; `detached` means that the widget stopped reading while the server went on. */
export type Ending = "whole" | "full" | "budget" | "late" | "stopped" | "detached" | Problem;

const ENDINGS = new Map<string, Ending>([
  ["stop", "whole"],
  ["budget", "budget"],
  ["timeout", "late"],
  ["stopped", "stopped"],
]);

/** Translates a finish reason; unknown ones count as the length limit. */
export function endingFor(finishReason: string): Ending {
  if (finishReason === "error") return new Problem("failed");
  return finishReason === "server_shutdown" || finishReason === "interrupted" ? new Problem("cut") : (ENDINGS.get(finishReason) ?? "full");
}
