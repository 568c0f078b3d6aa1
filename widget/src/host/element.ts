/** Defines `<skill-chat>`: a launcher that loads the app on first use and forwards the page's calls to it. */
import { documentMember } from "../dom/document.ts";
import { addStylesheet } from "../dom/elements.ts";
import type { Api, Chat, ChatElement, Load } from "./contract.ts";
import floatingStyle from "./floating.css";
import inlineStyle from "./inline.css";
import launcherStyle from "./launcher.css";

const TAG = "skill-chat";
/** The launcher's label and the message of a failed load, before the app brings its texts; chunk-launcher labels it in the other languages. */
const LABELS: Record<string, string> = {
  en: "Open chat|Chat unavailable",
  de: "Chat öffnen|Chat nicht erreichbar",
  fr: "Ouvrir le chat|Chat indisponible",
  es: "Abrir el chat|Chat no disponible",
};

/** Defines the element for the server at `base` and returns the page's API function. */
export function defineChatElement(base: string, load: Load): Api {
  const fetcher = fetch; // captured before the page can replace it
  let failures = 0;
  let launchers = 0;
  const chats: Record<string, ChatElement> = { __proto__: null! };
  const queue: [string, ...unknown[]][] = [];

  class SkillChat extends HTMLElement implements ChatElement {
    #root?: ShadowRoot;
    #chat?: Promise<Chat> | null;
    #calls: [string, unknown[]][] = [];

    connectedCallback(): void {
      if (this.#root) return;
      this.classList.add("rr-block", "sentry-block", "ph-no-capture", "fs-exclude"); // session replay leaves it out
      const root = (this.#root = this.attachShadow({ __proto__: null, mode: "open" } as ShadowRootInit));
      const button = documentMember("createElement")("button");
      button.className = "launcher";
      (button as { part: unknown }).part = "launcher";
      button.ariaLabel = this.#label(0);
      button.onclick = () => this.call("open");
      addStylesheet(root, launcherStyle + (this.#setting("mode") === "floating" ? floatingStyle : inlineStyle));
      root.append(button);
      let more: unknown = launchers++ || !LABELS[this.#language()] || this.dataset.mode !== "floating" || this.attributes.length > 4; // skill, mode, style, class
      try {
        more ||= (this.#setting("persist") ? localStorage : sessionStorage)[`skill-chat ${base} ${this.#setting("skill")}`];
      } catch {} // storage is forbidden
      if (more) void load(base, "chunk-launcher", failures).then((extra) => extra.extendLauncher(this, root, base), () => {});
    }

    /** Returns a floating chat to a page that replaced its content; pauses an inline one unless it was only moved. */
    async disconnectedCallback(): Promise<void> {
      await null;
      if (this.isConnected) return;
      if (this.#setting("mode") === "floating") documentMember("documentElement").append(this);
      else this.call("pause");
    }

    async call(method: string, ...values: unknown[]): Promise<void> {
      this.#calls.push([method, values]);
      if (method === "destroy") {
        this.dataset.mode = ""; // no longer floating, so it stays away
        if (api.host === this) api.host = null;
        this.remove();
      }
      if (!this.#chat && !/open|toggle|send|reset/.test(method)) return;
      const root = this.#root!;
      const button = root.firstChild as HTMLButtonElement;
      root.querySelector("output")?.remove();
      button.style.opacity = ".5";
      try {
        this.#chat ??= load(base, "app", failures).then((app) => app.start(root, button, base, this.#setting("skill")!, fetcher));
        const chat = await this.#chat;
        for (const call of this.#calls.splice(0)) chat.call(...call);
      } catch {
        failures++;
        this.#chat = null;
        this.#calls = [];
        const output = documentMember("createElement")("output");
        output.append(this.#label(1));
        root.append(output);
      }
      button.style.opacity = "";
    }

    #setting(name: string): string | null {
      return this.getAttribute(`data-${name}`) ?? this.getAttribute(name);
    }

    #language(): string {
      return (this.#setting("lang") || this.closest<HTMLElement>("[lang]")?.lang || navigator.language).slice(0, 2);
    }

    #label(at: number): string {
      return (LABELS[this.#language()] ?? LABELS.en!).split("|")[at]!;
    }
  }

  customElements.get(TAG) ?? customElements.define(TAG, SkillChat);

  const api: Api = (method, ...values) => {
    if (method !== "init") return api.host?.call(method, ...values) ?? queue.push([method, ...values]);
    const [given, script] = values as [Record<string, string>, Node?];
    const options: Record<string, string> = { __proto__: null!, ...given }; // ignores members the page put on every object
    options.mode ||= "floating";
    const existing = chats[options.skill!];
    if (existing?.isConnected) return (api.host = existing);
    const host = (api.host = chats[options.skill!] = documentMember("createElement")(TAG) as ChatElement);
    for (const [name, value] of Object.entries(options)) {
      if (`${value ?? false}` === "false") continue;
      // Turns zIndex into z-index, and characters that no attribute name may contain into hyphens.
      const option = name.split(/(?=[A-Z])|\W/).join("-").toLowerCase();
      host.setAttribute(`data-${option}`, [value].flat().join("|"));
      if (name !== "accent" || CSS.supports("color", value)) host.style.setProperty(`--skill-chat-${option}`, value);
    }
    const parent = options.mode !== "floating" && (documentMember("querySelector")(options.target!) ?? script?.parentNode);
    // A floating chat goes beside the body, so that it survives pages that replace their body.
    (parent || documentMember("documentElement")).append(host);
    for (const call of queue.splice(0)) host.call(...call);
    return host;
  };

  api.version = VERSION;
  return api;
}
