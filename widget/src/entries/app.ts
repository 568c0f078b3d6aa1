/**
 * The app, loaded when the visitor first uses the chat.
 * `start` is what every loader, old or new, calls; its first four parameters must not change.
 */
import answerStyle from "../panel/styles/answer.css";
import { Chat } from "../chat/chat.ts";
import { Client } from "../transport/client.ts";
import controlStyle from "../panel/styles/controls.css";
import { adopt } from "../dom/elements.ts";
import panelStyle from "../panel/styles/panel.css";
import { settingsOf } from "../dom/settings.ts";
import { textsFor } from "../texts/select.ts";
import themeStyle from "../panel/styles/theme.css";

type Button = HTMLButtonElement;

/** Build the chat beside its launcher; `base` is the address of the folder that widget.js lies in. */
export async function start(root: ShadowRoot, launcher: Button, base: string, skill: string, ask = fetch): Promise<Chat> {
  const settings = settingsOf(root.host, skill);
  const texts = await textsFor(settings.language);
  adopt(root, themeStyle + panelStyle + answerStyle + controlStyle);
  return new Chat(root, launcher, new Client(base, settings, ask), texts);
}
