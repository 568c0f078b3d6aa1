/** Maps the methods of the page's API, which come as strings, to the chat. */
import type { Chat } from "./chat.ts";

/** Calls a method by name; ignores unknown names. */
export function callMethod(chat: Chat, method: string, [first, second]: unknown[]): unknown {
  const { host } = chat.root;
  switch (method) {
    case "open":
      return chat.open(first !== false);
    case "close":
      return chat.close();
    case "toggle":
      return chat.visibility.isOpen ? chat.close() : chat.open();
    case "send":
      chat.open(false);
      return chat.send(String(first));
    case "reset":
      return chat.reset();
    case "identify":
      chat.client.identity = first;
      return chat.client.dropSession();
    case "setContext":
      return chat.setContext(first);
    case "setTheme":
      host.removeAttribute("theme");
      return host.setAttribute("data-theme", String(first));
    case "on":
      return host.addEventListener(`skillchat:${first}`, second as EventListener);
    case "off":
      return host.removeEventListener(`skillchat:${first}`, second as EventListener);
    case "pause":
    case "destroy":
      return chat.pause();
  }
  return undefined;
}
