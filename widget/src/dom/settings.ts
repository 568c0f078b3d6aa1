/** Reads the developer's settings from the element's attributes; they are shown as text and never sent to the model. */
export type Persistence = "session" | "local" | "none";

export interface Settings {
  skill: string;
  key: string;
  title: string;
  greeting: string;
  starters: string[];
  followUps: string[];
  persistence: Persistence;
  /** The page's own texts, as JSON. */
  texts: string;
  language: string;
  direction: string;
  /** Whether the chat is part of the page's flow instead of floating above it. */
  inline: boolean;
  alignLeft: boolean;
  /** Whether the panel is above everything of the page. */
  topLayer: boolean;
  /** Whether the page's events contain what was written. */
  eventText: boolean;
}

/** Reads each setting from `data-name`, or else from `name`. */
export function readSettings(host: Element, skill: string): Settings {
  const read = (name: string): string => host.getAttribute(`data-${name}`) ?? host.getAttribute(name) ?? "";
  const list = (name: string): string[] => read(name).split("|").map((item) => item.trim()).filter(Boolean);
  const has = (name: string): boolean => host.hasAttribute(`data-${name}`) || host.hasAttribute(name);
  const persistence = read("persist");
  return {
    skill,
    key: read("key"),
    title: read("title"),
    greeting: read("greeting"),
    starters: list("starters"),
    followUps: list("follow-ups"),
    persistence: persistence === "local" || persistence === "none" ? persistence : "session",
    texts: read("texts"),
    language: read("lang") || host.closest<HTMLElement>("[lang]")?.lang || navigator.language,
    direction: read("dir"),
    // Elements of older loaders have no mode and float.
    inline: host.hasAttribute("data-mode") || host.hasAttribute("skill") ? read("mode") !== "floating" : false,
    alignLeft: read("position").includes("left"),
    topLayer: !read("z-index"),
    eventText: has("event-text"),
  };
}
