/** Starts the widget from its script line and from the calls that the page queued before the script ran. */
import { documentMember } from "../dom/document.ts";
import type { Api, Load } from "./contract.ts";
import { defineChatElement } from "./element.ts";

declare global {
  interface Window {
    SkillChat?: unknown;
  }
}
type Global = Api & { q?: Iterable<unknown>[] };

/** Defines the element, publishes `SkillChat`, and creates the chat that the script line describes. */
export function bootstrap(load: Load): void {
  /** The API of an earlier script line, or the page's stub with its queue `q`. */
  const earlier = window.SkillChat as Global | undefined;
  /** Module scripts have no `currentScript`: they are found by attribute or by address. */
  const script = (documentMember("currentScript") ?? documentMember("querySelector")("script[data-skill]") ?? documentMember("querySelector")('script[src*="widget.js"]')) as HTMLScriptElement | null;
  const source = new URL(script?.src || location.href);
  const base = new URL(ROOT, source).href;
  const api = earlier?.version ? earlier : defineChatElement(base, load);
  /** Options may come in the query string, for tag managers that strip attributes. */
  const options: Record<string, unknown> = { ...Object.fromEntries(source.searchParams), ...script?.dataset };
  const run = (): void => {
    if (options.skill) api("init", options, script);
    for (const call of earlier?.q ?? []) api(...(call as [string]));
    if (!options.skill && !api.host && !documentMember("querySelector")("skill-chat")) console.warn("widget.js: no data-skill");
  };
  window.SkillChat = api;
  if (documentMember("readyState") === "loading") addEventListener("DOMContentLoaded", run);
  else run();
}
