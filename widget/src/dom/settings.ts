/** What the page's developer set, read from the element; all of it is text, and none of it reaches the model. */
export type Persist = "session" | "local" | "none";

export interface Settings {
  skill: string;
  key: string;
  title: string;
  greeting: string;
  starters: string[];
  persist: Persist;
  language: string;
  direction: string;
  inline: boolean;
  left: boolean;
  /** Whether events carry what was written. */
  eventText: boolean;
}

export function settingsOf(host: Element, skill: string): Settings {
  const read = (name: string): string => host.getAttribute(`data-${name}`) ?? host.getAttribute(name) ?? "";
  const persist = read("persist");
  return {
    skill,
    key: read("key"),
    title: read("title"),
    greeting: read("greeting"),
    starters: read("starters").split("|").map((starter) => starter.trim()).filter(Boolean),
    persist: persist === "local" || persist === "none" ? persist : "session",
    language: read("lang") || host.closest<HTMLElement>("[lang]")?.lang || navigator.language,
    direction: read("dir"),
    // An earlier loader makes an element without a mode, which floats.
    inline: host.hasAttribute("data-mode") || host.hasAttribute("skill") ? read("mode") !== "floating" : false,
    left: read("position").includes("left"),
    eventText: host.hasAttribute("data-event-text") || host.hasAttribute("event-text"),
  };
}
