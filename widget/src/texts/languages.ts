/** Loads each language from its own file beside the app, so that a visitor downloads only one. */
import { fileUrl } from "../dom/files.ts";
import type { Texts } from "./en.ts";

export const codes = LANGUAGES.split(" ");

export const load = async (code: string): Promise<Texts> => (await import(fileUrl(`app-${code}`))).default as Texts;
