/** JSON that a page's scripts cannot bend: old libraries give arrays a `toJSON`, and some put members on every object. */

/** An object of strings as JSON; what is undefined is left out. Strings are immune to `toJSON`. */
export function write(fields: Record<string, string | null | undefined>): string {
  const given = Object.keys(fields).filter((name) => fields[name] !== undefined);
  return `{${given.map((name) => `${JSON.stringify(name)}:${JSON.stringify(fields[name])}`).join()}}`;
}

/** What a text of JSON holds; null where it is none. */
export function read(text: string): unknown {
  try {
    return JSON.parse(text);
  } catch {
    return null;
  }
}

/** A member of a value that came from outside, and nothing inherited. */
export function member(value: unknown, name: string): unknown {
  return typeof value === "object" && value !== null && Object.hasOwn(value, name) ? Reflect.get(value, name) : undefined;
}

export function text(value: unknown): string {
  return typeof value === "string" ? value : "";
}

export function number(value: unknown): number {
  return typeof value === "number" && Number.isFinite(value) ? value : 0;
}

export function list(value: unknown): unknown[] {
  return Array.isArray(value) ? value : [];
}
