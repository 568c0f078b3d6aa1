/**
 * Pairs runs of `*` and `_` by CommonMark's delimiter rules, so that snake_case stays itself.
 * Runs that find no partner become the text that they are.
 */
import type { Inline } from "./inline.ts";

/** A run of one mark that may open or close emphasis; `size` is its length at first, `length` what is left of it. */
export interface Run {
  kind: "run";
  mark: string;
  size: number;
  length: number;
  opens: boolean;
  closes: boolean;
}

/** The run `marks` that stands in `text` at `start`. */
export function run(marks: string, text: string, start: number): Run {
  const before = [...text.slice(Math.max(0, start - 2), start)].pop() ?? " ";
  const after = String.fromCodePoint(text.codePointAt(start + marks.length) ?? 32);
  const left = flanks(after, before);
  const right = flanks(before, after);
  const under = marks[0] === "_";
  return {
    kind: "run",
    mark: marks[0] ?? "",
    size: marks.length,
    length: marks.length,
    opens: left && (!under || !right || punctuation(before)),
    closes: right && (!under || !left || punctuation(after)),
  };
}

/** A run clings to its inner side unless there is a space, or punctuation that the outer side does not excuse. */
function flanks(inner: string, outer: string): boolean {
  return !/\s/.test(inner) && (!punctuation(inner) || /\s/.test(outer) || punctuation(outer));
}

function punctuation(character: string): boolean {
  return /[\p{P}\p{S}]/u.test(character);
}

/** Replace matching runs by emphasis and the rest by text; with `open`, bold text that has begun is bold already. */
export function emphasise(nodes: (Inline | Run)[], open = false): Inline[] {
  for (let at = 0; at < nodes.length; at++) {
    const closer = nodes[at];
    if (closer?.kind !== "run" || !closer.closes || !closer.length) continue;
    const from = opening(nodes, at, closer);
    const opener = nodes[from];
    if (opener?.kind !== "run") continue;
    const used = Math.min(2, opener.length, closer.length);
    opener.length -= used;
    closer.length -= used;
    const children = settle(nodes.slice(from + 1, at));
    nodes.splice(from + 1, at - from - 1, { kind: used === 2 ? "strong" : "emphasis", children });
    at = from + 1; // the closer is next, and may close again with what is left of it
  }
  const begun = open ? nodes.findLastIndex((node) => node.kind === "run" && node.opens && node.length === 2) : -1;
  if (begun < 0) return settle(nodes);
  return [...settle(nodes.slice(0, begun)), { kind: "strong", children: settle(nodes.slice(begun + 1)) }];
}

/** The nearest run before `at` that `closer` may close; its sizes obey CommonMark's rule of three. */
function opening(nodes: (Inline | Run)[], at: number, closer: Run): number {
  for (let from = at - 1; from >= 0; from--) {
    const node = nodes[from];
    if (node?.kind !== "run" || node.mark !== closer.mark || !node.opens || !node.length) continue;
    const both = node.closes || closer.opens;
    if (!both || (node.size + closer.size) % 3 || !(node.size % 3 || closer.size % 3)) return from;
  }
  return -1;
}

function settle(nodes: (Inline | Run)[]): Inline[] {
  const result: Inline[] = [];
  for (const node of nodes) {
    const next: Inline = node.kind === "run" ? { kind: "text", text: node.mark.repeat(node.length) } : node;
    const last = result.at(-1);
    if (next.kind === "text" && last?.kind === "text") result[result.length - 1] = { kind: "text", text: last.text + next.text };
    else if (next.kind !== "text" || next.text) result.push(next);
  }
  return result;
}
