/** Wraps the chat for React 18 and later; renders on servers too. */
import { createElement, useEffect, type ReactElement } from "react";
import { attributesOf, chatsOf, float, type ChatOptions } from "./shared.ts";

export type { ChatOptions };

/** A chat in the page's flow; its options are attributes, which may change. */
export function Chat(options: ChatOptions): ReactElement {
  useEffect(() => void chatsOf(options.server), [options.server]);
  return createElement("skill-chat", attributesOf(options));
}

/** A floating chat, which comes and goes with the component, and is made anew when an option changes. */
export function FloatingChat(options: ChatOptions): null {
  useEffect(() => float(options), [JSON.stringify(options)]);
  return null;
}
