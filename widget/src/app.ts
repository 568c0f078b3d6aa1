/**
 * The app, loaded when the visitor first uses the chat.
 * `start` is what every loader, old or new, calls; its first four parameters must not change.
 */
import answerStyle from "./answer.css";
import { Chat } from "./chat.ts";
import { Client } from "./client.ts";
import controlStyle from "./controls.css";
import { adopt } from "./dom.ts";
import panelStyle from "./panel.css";
import { settingsOf } from "./settings.ts";
import { textsFor } from "./texts.ts";
import themeStyle from "./theme.css";

type Button = HTMLButtonElement;

/** Build the chat beside its launcher; `base` is the address of the folder that widget.js lies in. */
export async function start(root: ShadowRoot, launcher: Button, base: string, skill: string, ask = fetch): Promise<Chat> {
  const settings = settingsOf(root.host, skill);
  const texts = await textsFor(settings.language);
  adopt(root, themeStyle + panelStyle + answerStyle + controlStyle);
  return new Chat(root, launcher, new Client(base, settings, ask), texts);
}
