/** The languages, each a file of its own beside the app, so that a visitor gets only one. */
import type { Texts } from "./en.ts";

type Table = () => Promise<Texts>;

const load = async (file: string): Promise<Texts> => (await import(new URL(file + new URL(import.meta.url).search, import.meta.url).href)).default as Texts;

export const tables = new Map<string, Table>(Object.entries(LANGUAGES).map(([code, file]) => [code, () => load(file)]));
