/** What the wrappers for frameworks share. Importing it has no side effect, also on a server. */
import type { Api, ChatElement } from "../../host/contract.ts";
import { define } from "../npm.ts";

/** The options of the guide, by attribute names or in camel case; `server` is the server's address. */
export interface ChatOptions {
  server: string;
  skill: string;
  [option: string]: unknown;
}

const apis = new Map<string, Api>();

/** Returns the function that creates and controls chats of `server`; defines the element once. */
export function chatsOf(server: string): Api {
  const known = apis.get(server) ?? define(server);
  apis.set(server, known);
  return known;
}

/** Shows a floating chat; returns the function that removes it. */
export function float({ server, ...options }: ChatOptions): () => void {
  const chat = chatsOf(server)("init", { ...options, mode: "floating" }) as ChatElement;
  return () => void chat.call("destroy");
}

/** Turns the options of an inline chat into attributes of its element. */
export function attributesOf({ server: _, ...options }: ChatOptions): Record<string, string> {
  const shown = Object.entries(options).filter(([, value]) => value !== false && value != null);
  return Object.fromEntries(shown.map(([name, value]) => [name.replace(/[A-Z]/g, "-$&").toLowerCase(), Array.isArray(value) ? value.join("|") : String(value)]));
}
