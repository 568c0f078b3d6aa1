/** Loads each language from its own file beside the app, so that a visitor downloads only one. */
import { fileUrl } from "../dom/files.ts";
import type { Language } from "./languages/en.ts";

export const codes = LANGUAGES.split(" ");

export const load = (code: string): Promise<Language> => import(fileUrl(`app-${code}`)) as Promise<Language>;
