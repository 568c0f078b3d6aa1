/** Dispatches the chat's events to the page. */
import { withoutPrototype } from "../dom/document.ts";
import type { Settings } from "../dom/settings.ts";

/** Dispatches `skillchat:name` without what was written, unless the developer asked for it. */
export function dispatch(host: Element, { skill, eventText }: Settings, name: string, replyId?: string, fields: Record<string, unknown> = withoutPrototype({})): void {
  if (!eventText) delete fields.text;
  const detail = withoutPrototype({ ...fields, skill, reply: replyId || undefined });
  host.dispatchEvent(new CustomEvent(`skillchat:${name}`, withoutPrototype({ bubbles: true, composed: true, detail })));
}
