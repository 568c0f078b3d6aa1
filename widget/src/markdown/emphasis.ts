/** Resolves `*` and `_` into emphasis by CommonMark's delimiter rules, so that snake_case stays text. */
import type { Inline } from "./inline.ts";

/** A delimiter run: consecutive `*` or `_`. `size` is its original length, `length` what is still unpaired. */
export interface DelimiterRun {
  kind: "run";
  mark: string;
  size: number;
  length: number;
  opens: boolean;
  closes: boolean;
}

/** Classifies the run `marks`, found in `text` at `start`, by whether it can open or close emphasis. */
export function delimiterRun(marks: string, text: string, start: number): DelimiterRun {
  const before = [...text.slice(Math.max(0, start - 2), start)].pop() ?? " ";
  const after = String.fromCodePoint(text.codePointAt(start + marks.length) ?? 32);
  const leftFlanking = isFlanking(after, before);
  const rightFlanking = isFlanking(before, after);
  const underscore = marks[0] === "_";
  return {
    kind: "run",
    mark: marks[0] ?? "",
    size: marks.length,
    length: marks.length,
    opens: leftFlanking && (!underscore || !rightFlanking || isPunctuation(before)),
    closes: rightFlanking && (!underscore || !leftFlanking || isPunctuation(after)),
  };
}

/** Whether a run flanks its inner side: no space there, and punctuation only if the outer side has a space or punctuation. */
function isFlanking(inner: string, outer: string): boolean {
  return !/\s/.test(inner) && (!isPunctuation(inner) || /\s/.test(outer) || isPunctuation(outer));
}

function isPunctuation(character: string): boolean {
  return /[\p{P}\p{S}]/u.test(character);
}

/** Replaces paired runs by emphasis and the rest by text; while `streaming`, unclosed bold text is already bold. */
export function resolveEmphasis(nodes: (Inline | DelimiterRun)[], streaming: boolean): Inline[] {
  for (let at = 0; at < nodes.length; at++) {
    const closer = nodes[at];
    if (closer?.kind !== "run" || !closer.closes || !closer.length) continue;
    const from = findOpener(nodes, at, closer);
    const opener = nodes[from];
    if (opener?.kind !== "run") continue;
    const used = Math.min(2, opener.length, closer.length);
    opener.length -= used;
    closer.length -= used;
    const children = runsToText(nodes.slice(from + 1, at));
    nodes.splice(from + 1, at - from - 1, { kind: used === 2 ? "strong" : "emphasis", children });
    at = from + 1; // visits the closer again, which may have delimiters left
  }
  const unclosed = streaming ? nodes.findLastIndex((node) => node.kind === "run" && node.opens && node.length === 2) : -1;
  if (unclosed < 0) return runsToText(nodes);
  return [...runsToText(nodes.slice(0, unclosed)), { kind: "strong", children: runsToText(nodes.slice(unclosed + 1)) }];
}

/** Finds the nearest opener before `at` that `closer` matches by CommonMark's rule of three; -1 if there is none. */
function findOpener(nodes: (Inline | DelimiterRun)[], at: number, closer: DelimiterRun): number {
  for (let from = at - 1; from >= 0; from--) {
    const node = nodes[from];
    if (node?.kind !== "run" || node.mark !== closer.mark || !node.opens || !node.length) continue;
    const ambiguous = node.closes || closer.opens;
    if (!ambiguous || (node.size + closer.size) % 3 || !(node.size % 3 || closer.size % 3)) return from;
  }
  return -1;
}

/** Turns unpaired runs into text and merges adjacent texts. */
function runsToText(nodes: (Inline | DelimiterRun)[]): Inline[] {
  const result: Inline[] = [];
  for (const node of nodes) {
    const next: Inline = node.kind === "run" ? { kind: "text", text: node.mark.repeat(node.length) } : node;
    const last = result.at(-1);
    if (next.kind === "text" && last?.kind === "text") result[result.length - 1] = { kind: "text", text: last.text + next.text };
    else if (next.kind !== "text" || next.text) result.push(next);
  }
  return result;
}
