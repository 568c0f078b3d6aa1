/** Exports the npm package, which bundles the app with the page's own code. Importing it has no side effect. */
import type { Api, Load } from "../host/contract.ts";
import { defineChatElement } from "../host/element.ts";

export type SkillChat = Api;

/** Defines `<skill-chat>` for the server at `base` and returns the function that creates and controls chats. */
export function define(base: string): SkillChat {
  return defineChatElement(new URL(base).href, ((_: string, name: string) => (name === "app" ? import("./app.ts") : import("../extras/launcher/launcher.ts"))) as Load);
}
