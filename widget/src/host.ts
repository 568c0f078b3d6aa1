/**
 * `<skill-chat>`, which holds a launcher until the visitor uses it and the app's chat after, and the one function that makes
 * and steers it. Every call goes to the app: some bring it, the others wait for it.
 */
import { adopt, element, page } from "./dom.ts";
import inlineStyle from "./inline.css";
import style from "./launcher.css";

export interface Chat {
  call(method: string, values: unknown[]): unknown;
}
export interface App {
  start(root: ShadowRoot, launcher: HTMLButtonElement, base: string, skill: string, ask: typeof fetch): Promise<Chat>;
}
export interface Host extends HTMLElement {
  call(method: string, ...values: unknown[]): unknown;
}
export interface Api {
  (method: string, ...values: unknown[]): unknown;
  version: string;
  /** The chat that calls mean: the latest that `init` made. */
  host?: Host | undefined;
}

const TAG = "skill-chat";
const WORDS: Record<string, string[]> = {
  en: ["Open chat", "Chat unavailable"],
  de: ["Chat öffnen", "Chat nicht erreichbar"],
  fr: ["Ouvrir le chat", "Chat indisponible"],
  es: ["Abrir el chat", "Chat no disponible"],
  ar: ["فتح المحادثة", "المحادثة غير متاحة"],
};

/** Define the element for the server at `base`, whose app `load` gives; returns the function that makes and steers chats. */
export function define(base: string, load: () => Promise<App>): Api {
  const ask = fetch; // the page may replace it later
  const waiting: [string, ...unknown[]][] = [];

  class Element extends HTMLElement implements Host {
    #root?: ShadowRoot;
    #chat: Promise<Chat> | undefined;
    #calls: [string, unknown[]][] = [];
    #stays = false;

    connectedCallback(): void {
      if (!this.#root) this.#build();
      if (!this.#stays || this.#read("z-index")) return;
      this.popover = "manual"; // the top layer: nothing on the page can cover it
      this.showPopover?.();
    }

    /** A floating chat outlives what its page replaces; any other pauses unless it was only moved. */
    async disconnectedCallback(): Promise<void> {
      await null;
      if (this.isConnected) return;
      if (this.#stays) page("documentElement")?.append(this);
      else this.call("pause");
    }

    async call(method: string, ...values: unknown[]): Promise<void> {
      this.#calls.push([method, values]);
      if (method === "destroy") {
        this.#stays = false;
        this.remove();
        if (api.host === this) api.host = undefined;
      }
      if (!this.#chat && !/open|toggle|send|reset/.test(method)) return;
      const root = this.#root!;
      const button = root.querySelector("button")!;
      root.querySelector(".trouble")?.remove();
      try {
        this.#chat ??= load().then((app) => app.start(root, button, base, this.#read("skill")!, ask));
        const chat = await this.#chat;
        for (const [name, given] of this.#calls.splice(0)) chat.call(name, given);
      } catch {
        this.#chat = undefined;
        this.#calls = [];
        root.append(element("div", { class: "trouble", role: "alert" }, this.#words()[1]!));
      }
    }

    #read(name: string): string | null {
      return this.getAttribute(`data-${name}`) ?? this.getAttribute(name);
    }

    #words(): string[] {
      const language = this.#read("lang") || this.closest<HTMLElement>("[lang]")?.lang || navigator.language;
      return WORDS[language.slice(0, 2)] ?? WORDS.en!;
    }

    #build(): void {
      this.#stays = this.#read("mode") === "floating";
      const accent = this.#read("accent") ?? "";
      if (CSS.supports("color", accent)) this.style.setProperty("--skill-chat-accent", accent);
      this.style.setProperty("--skill-chat-z", this.#read("z-index"));
      const root = (this.#root = this.attachShadow({ mode: "open" }));
      const button = element("button", { class: "launcher", "aria-label": this.#words()[0]! });
      button.onclick = () => this.call("open");
      adopt(root, this.#stays ? style : style + inlineStyle);
      root.append(button);
      if (this.#read("open") !== null) this.call("open", false);
    }
  }

  customElements.get(TAG) ?? customElements.define(TAG, Element);

  const api: Api = (method, ...values) => {
    if (method === "init") return init(...(values as [Record<string, unknown>, Node?]));
    return api.host?.call(method, ...values) ?? waiting.push([method, ...values]);
  };

  /** Beside the body rather than in it, so that it survives pages that replace their body. */
  function init(options: Record<string, unknown>, script?: Node): Host {
    if (api.host && api.host.dataset.skill === options.skill) return api.host;
    const host = (api.host = element(TAG) as Host);
    for (const name of Object.keys(options)) {
      host.setAttribute(`data-${name.replace(/[A-Z]/g, "-$&")}`, [options[name]].flat().join("|")); // zIndex or z-index
    }
    host.dataset.mode ||= "floating";
    const place = host.dataset.mode === "inline" && (page("querySelector")(host.dataset.target || "_") ?? script?.parentNode);
    (place || page("documentElement")).append(host);
    for (const call of waiting.splice(0)) host.call(...call);
    return host;
  }

  api.version = VERSION;
  return api;
}
