/** Replaces chunks/files.ts where the chunks are in the bundle: in the single file and the npm package. */
import type { Extras } from "../chunks/contract.ts";

const importers: { [Name in keyof Extras]: () => Promise<Extras[Name]> } = {
  rich: () => import("../extras/answer/rich.ts"),
  turn: () => import("../extras/answer/turn.ts"),
  field: () => import("../extras/panel/field.ts"),
  undo: () => import("../extras/panel/undo.ts"),
  busy: () => import("../extras/panel/busy.ts"),
  phone: () => import("../extras/panel/phone.ts"),
};

export const importer = <Name extends keyof Extras>(name: Name): Promise<Extras[Name]> => importers[name]();
