/** Reads the script line of widget.js and begins with what it and the page's queue say. */
import { page } from "../dom/elements.ts";
import { define, type Api, type Load } from "./element.ts";

declare global {
  interface Window {
    SkillChat?: unknown;
  }
}
type Global = Api & { q?: Iterable<unknown>[] };

export function begin(load: Load): void {
  /** A function of ours from an earlier inclusion, or the page's stub with the calls that wait in its queue. */
  const earlier = window.SkillChat as Global | undefined;
  /** Modules leave no current script; then the line is found by its address. */
  const script = (page("currentScript") ?? page("querySelector")("script[data-skill]") ?? page("querySelector")('script[src*="widget.js"]')) as HTMLScriptElement | null;
  const source = new URL(script?.src || location.href);
  const base = new URL(ROOT, source).href;
  const api = earlier?.version ? earlier : define(base, load);
  /** Tag managers that allow no attributes put the options into the address. */
  const options: Record<string, unknown> = { ...Object.fromEntries(source.searchParams), ...script?.dataset };
  const run = (): void => {
    if (options.skill) api("init", options, script);
    for (const call of earlier?.q ?? []) api(...(call as [string]));
    if (!options.skill && !api.host && !page("querySelector")("skill-chat")) console.warn("widget.js: no data-skill");
  };
  window.SkillChat = api;
  if (page("readyState") === "loading") addEventListener("DOMContentLoaded", run);
  else run();
}
