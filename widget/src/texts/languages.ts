/** Loads each language from its own file beside the app, so that a visitor downloads only one. */
import type { Texts } from "./en.ts";

/** Repeats the query of the app's URL, which makes the URL of a retry unique. */
const load = async (file: string): Promise<Texts> => (await import(new URL(file + new URL(import.meta.url).search, import.meta.url).href)).default as Texts;

export const textLoaders = new Map<string, () => Promise<Texts>>(Object.entries(LANGUAGES).map(([code, file]) => [code, () => load(file)]));
