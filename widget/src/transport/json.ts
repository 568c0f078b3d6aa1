/** Writes and reads JSON on pages that add `toJSON` to arrays or members to every object. */

export type Fields = Record<string, string | string[] | null | undefined>;

/** Serialises strings and lists of strings without `undefined` fields; `toJSON` does not affect strings. */
export function stringifyFields(fields: Fields): string {
  const json = (value: string | string[] | null | undefined): string => (Array.isArray(value) ? `[${value.map(json).join()}]` : JSON.stringify(value));
  const names = Object.keys(fields).filter((name) => fields[name] !== undefined);
  return `{${names.map((name) => `${json(name)}:${json(fields[name])}`).join()}}`;
}

/** Parses JSON; null if it is malformed. */
export function parseJson(text: string): unknown {
  try {
    return JSON.parse(text);
  } catch {
    return null;
  }
}

/** Reads an own property of any value; undefined if there is none. */
export function property(value: unknown, name: string): unknown {
  return typeof value === "object" && value !== null && Object.hasOwn(value, name) ? Reflect.get(value, name) : undefined;
}

/** Returns a string as it is, anything else as an empty one. */
export function asString(value: unknown): string {
  return typeof value === "string" ? value : "";
}

/** Returns a finite number as it is, anything else as 0. */
export function asNumber(value: unknown): number {
  return typeof value === "number" && Number.isFinite(value) ? value : 0;
}

/** Returns an array as it is, anything else as an empty one. */
export function asArray(value: unknown): unknown[] {
  return Array.isArray(value) ? value : [];
}
