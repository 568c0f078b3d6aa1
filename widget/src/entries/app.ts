/** Builds the app, which the loader imports when the visitor first uses the chat. */
import answerStyle from "../panel/styles/answer.css";
import { Chat } from "../chat/chat.ts";
import { Client } from "../transport/client.ts";
import controlStyle from "../panel/styles/controls.css";
import { addStylesheet } from "../dom/elements.ts";
import panelStyle from "../panel/styles/panel.css";
import { readSettings } from "../dom/settings.ts";
import { textsFor } from "../texts/select.ts";
import themeStyle from "../panel/styles/theme.css";

type Button = HTMLButtonElement;

/** Builds the chat beside its launcher; `base` is the URL of widget.js's folder. See `App` for what must not change. */
export async function start(root: ShadowRoot, launcher: Button, base: string, skill: string, fetcher = fetch): Promise<Chat> {
  const settings = readSettings(root.host, skill);
  const texts = await textsFor(settings.language, settings.texts);
  addStylesheet(root, themeStyle + panelStyle + answerStyle + controlStyle);
  return new Chat(root, launcher, new Client(base, settings, fetcher), texts);
}
