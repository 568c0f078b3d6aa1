/** Builds the chunk for launchers with options, for inline chats, for a second chat, and for visitors who return. */
import { addStylesheet } from "../../dom/elements.ts";
import type { ChatElement } from "../../host/contract.ts";
import { VisitStore } from "../../transport/visit-store.ts";
import style from "./launcher.css";
import { decorate } from "./look.ts";
import { showTeaser } from "./teaser.ts";

const SMALL = "(max-width: 480px), (max-height: 420px)";
/** How a launcher describes a conversation that goes on, the name of the button that closes the teaser, and its label where widget.js has none. */
const TEXTS: Record<string, [string, string, string?]> = {
  en: ["Your conversation goes on here.", "Close this note"],
  de: ["Ihr Gespräch geht hier weiter.", "Hinweis schließen"],
  fr: ["Votre conversation continue ici.", "Fermer ce message"],
  es: ["Su conversación sigue aquí.", "Cerrar este aviso"],
  ar: ["محادثتك مستمرة هنا.", "إغلاق هذه الملاحظة", "فتح المحادثة"],
  it: ["La sua conversazione continua qui.", "Chiudi questo avviso", "Apri chat"],
  ja: ["会話の続きはこちらです。", "このお知らせを閉じる", "チャットを開く"],
  nl: ["Uw gesprek gaat hier verder.", "Deze melding sluiten", "Chat openen"],
  pl: ["Twoja rozmowa trwa tutaj.", "Zamknij tę wiadomość", "Otwórz czat"],
  pt: ["A sua conversa continua aqui.", "Fechar este aviso", "Abrir chat"],
};

/** See `MoreLauncher`. */
export function extendLauncher(host: ChatElement, root: ShadowRoot, base: string): void {
  addStylesheet(root, style);
  const setting = (name: string): string | null => host.getAttribute(`data-${name}`) ?? host.getAttribute(name);
  const label = setting("label");
  const launcher = root.querySelector<HTMLElement>(".launcher")!;
  const texts = textsOf(host, setting("lang"));
  if (label || texts[2]) launcher.ariaLabel = label || texts[2]!;
  for (const { name, value } of [...host.attributes]) {
    if (name.startsWith("data-") || name === "style" || (name === "accent" && !CSS.supports("color", value))) continue;
    host.style.setProperty(`--skill-chat-${name}`, value);
  }
  if (["logo", "avatar", "header"].some((name) => setting(name))) {
    host.addEventListener("skillchat:ready", () => decorate(root, root.querySelector(".panel")!), { once: true });
  }
  if (setting("mode") === "floating") float(host, root, launcher, base, setting);
  else if (setting("open") !== null) host.call("open", false);
  else if (setting("load") !== "use") whenSeen(host, () => host.call("open", false));
}

/** Does for a floating chat what other pages of this visit and its options call for. */
function float(host: ChatElement, root: ShadowRoot, launcher: HTMLElement, base: string, setting: (name: string) => string | null): void {
  standBeside(host);
  const persist = setting("persist");
  const store = new VisitStore(persist === "local" || persist === "none" ? persist : "session", `skill-chat ${base} ${setting("skill")}`);
  const { open, seen, resume } = store.read();
  const small = matchMedia(SMALL).matches;
  const [continues, dismiss] = textsOf(host, setting("lang"));
  if (!small && (open || (setting("open") !== null && !seen))) {
    store.write({ seen: "yes" });
    return void host.call("open", false);
  }
  const teaser = setting("teaser");
  if (resume) launcher.setAttribute("aria-description", continues);
  else if (teaser && !seen && (!small || setting("teaser-phone") !== null)) {
    const invitation = { text: teaser, after: setting("teaser-after") ?? "", at: setting("teaser-at") ?? "", dismiss, left: /left/.test(setting("position") ?? "") };
    showTeaser(root, launcher, invitation, () => void host.call("open"), () => store.write({ seen: "yes" }));
  }
}

const textsOf = (host: HTMLElement, language: string | null): [string, string, string?] =>
  TEXTS[(language || host.closest<HTMLElement>("[lang]")?.lang || navigator.language).slice(0, 2)] ?? TEXTS.en!;

/** Calls `action` once `host` is in view. */
function whenSeen(host: Element, action: () => void): void {
  new IntersectionObserver((entries, observer) => {
    if (!entries.some((entry) => entry.isIntersecting)) return;
    observer.disconnect();
    action();
  }).observe(host);
}

/** Moves a launcher beside the ones before it at the same side, and keeps only one panel open. */
function standBeside(host: ChatElement): void {
  const read = (chat: Element, name: string): string => chat.getAttribute(`data-${name}`) ?? chat.getAttribute(name) ?? "";
  const isLeft = (chat: Element): boolean => read(chat, "position").includes("left");
  let before = 0;
  for (let chat = host.previousElementSibling; chat?.localName === host.localName; chat = chat.previousElementSibling) {
    if (read(chat, "mode") !== "floating" || isLeft(chat) !== isLeft(host)) continue;
    const other = chat as ChatElement;
    before++;
    other.addEventListener("skillchat:open", () => host.call("close"));
    host.addEventListener("skillchat:open", () => other.call("close"));
  }
  if (!before) return;
  const first = read(host, "offset-x") || "20px";
  host.style.setProperty("--skill-chat-offset-x", `calc(${first} + ${before} * 68px * var(--skill-chat-size, 1))`);
}
