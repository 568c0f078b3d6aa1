/** The npm package: the same element and function, with the app in the page's own bundle. Nothing runs on import. */
import { define as defineFor, type Api, type App } from "../host/element.ts";

export type SkillChat = Api;

/** Define `<skill-chat>` for the server at `base`, and return the function that makes and steers chats. */
export function define(base: string): SkillChat {
  return defineFor(new URL(base).href, () => import("./app.ts") as Promise<App>);
}
