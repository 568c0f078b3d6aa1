/**
 * `<skill-chat>`, which holds a launcher until the visitor uses it and the app's chat after, and the one function that makes
 * and steers it. Every call goes to the app: some bring it, the others wait for it.
 */
import { adopt, element, page } from "../dom/elements.ts";
import floatingStyle from "./floating.css";
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
  host?: Host | null;
}

/** Gives the app of the server at `base`; browsers keep a failure for its address, so each failure makes another. */
export type Load = (base: string, failures: number) => Promise<App>;

const TAG = "skill-chat";
const WORDS: Record<string, string[]> = {
  en: ["Open chat", "Chat unavailable"],
  de: ["Chat öffnen", "Chat nicht erreichbar"],
  fr: ["Ouvrir le chat", "Chat indisponible"],
  es: ["Abrir el chat", "Chat no disponible"],
  ar: ["فتح المحادثة", "غير متاحة"],
};

/** Define the element for the server at `base`, whose app `load` gives; returns the function that makes and steers chats. */
export function define(base: string, load: Load): Api {
  const ask = fetch; // the page may replace it later
  let failures = 0;
  const hosts: Record<string, Host> = { __proto__: null! };
  const waiting: [string, ...unknown[]][] = [];

  class Element extends HTMLElement implements Host {
    #root?: ShadowRoot;
    #chat?: Promise<Chat> | null;
    #calls: [string, unknown[]][] = [];

    connectedCallback(): void {
      if (!this.#root) {
        const accent = this.#read("accent")!; // no colour is called null
        if (CSS.supports("color", accent)) this.style.setProperty("--skill-chat-accent", accent);
        this.style.setProperty("--skill-chat-z", this.#read("z-index"));
        const root = (this.#root = this.attachShadow({ __proto__: null, mode: "open" } as ShadowRootInit));
        const button = element("button", { class: "launcher", "aria-label": this.#words()[0]! });
        button.onclick = () => this.call("open");
        adopt(root, style + (this.#read("mode") === "floating" ? floatingStyle : inlineStyle));
        root.append(button);
        if (this.#read("open") !== null) this.call("open", false);
      }
      if (this.#read("mode") !== "floating" || this.#read("z-index")) return;
      this.popover = "manual"; // the top layer: nothing on the page can cover it
      this.showPopover?.();
    }

    /** A floating chat outlives what its page replaces; any other pauses unless it was only moved. */
    async disconnectedCallback(): Promise<void> {
      await null;
      if (this.isConnected) return;
      if (this.#read("mode") === "floating") page("documentElement")?.append(this);
      else this.call("pause");
    }

    async call(method: string, ...values: unknown[]): Promise<void> {
      this.#calls.push([method, values]);
      if (method === "destroy") {
        this.dataset.mode = "";
        if (api.host === this) api.host = null;
        this.remove();
      }
      if (!this.#chat && !/open|toggle|send|reset/.test(method)) return;
      const root = this.#root!;
      const button = root.firstChild as HTMLButtonElement;
      root.querySelector("output")?.remove();
      try {
        this.#chat ??= load(base, failures).then((app) => app.start(root, button, base, this.#read("skill")!, ask));
        const chat = await this.#chat;
        for (const call of this.#calls.splice(0)) chat.call(...call);
      } catch {
        failures++;
        this.#chat = null;
        this.#calls = [];
        root.append(element("output", { role: "alert" }, this.#words()[1]!));
      }
    }

    #read(name: string): string | null {
      return this.getAttribute(`data-${name}`) ?? this.getAttribute(name);
    }

    #words(): string[] {
      const language = this.#read("lang") || this.closest<HTMLElement>("[lang]")?.lang || navigator.language;
      return WORDS[language.slice(0, 2)] ?? WORDS.en!;
    }
  }

  customElements.get(TAG) ?? customElements.define(TAG, Element);

  const api: Api = (method, ...values) => {
    if (method !== "init") return api.host?.call(method, ...values) ?? waiting.push([method, ...values]);
    const [options, script] = values as [Record<string, string>, Node?];
    const given: Record<string, string> = { __proto__: null!, ...options }; // nothing that pages put on every object
    given.mode ||= "floating";
    const made = hosts[given.skill!];
    if (made?.isConnected) return (api.host = made);
    const host = (api.host = hosts[given.skill!] = element(TAG) as Host);
    for (const [name, value] of Object.entries(given)) {
      if (`${value ?? false}` === "false") continue;
      // zIndex or z-index; an address may hold names that no attribute can have
      host.setAttribute(`data-${name.split(/(?=[A-Z])|\W/).join("-")}`, [value].flat().join("|"));
    }
    const place = given.mode !== "floating" && (page("querySelector")(given.target!) ?? script?.parentNode);
    // Beside the body rather than in it, so that it survives pages that replace their body.
    (place || page("documentElement")).append(host);
    for (const call of waiting.splice(0)) host.call(...call);
    return host;
  };

  api.version = VERSION;
  return api;
}
