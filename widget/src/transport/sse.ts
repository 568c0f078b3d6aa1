/**
 * Reads server-sent events from bytes as they arrive, wherever they are cut, as the HTML standard has it.
 * Knows LF, CR, CRLF, a byte order mark, comments, names, ids, several lines of data, and characters split between chunks.
 */
export interface ServerEvent {
  name: string;
  data: string;
  /** The latest id that the stream gave, with this event or before it. */
  id: string;
}

export class EventReader {
  #decoder = new TextDecoder();
  #line = "";
  #afterReturn = false;
  #name = "";
  #data: string[] = [];
  #id = "";

  /** Take the next bytes; return every event that they complete. */
  push(bytes: Uint8Array): ServerEvent[] {
    let text = this.#decoder.decode(bytes, { stream: true });
    if (!text) return [];
    if (this.#afterReturn && text[0] === "\n") text = text.slice(1);
    this.#afterReturn = text ? text.endsWith("\r") : false;
    const lines = text.split(/\r\n|\r|\n/);
    lines[0] = this.#line + lines[0];
    this.#line = lines.pop() ?? "";
    return lines.flatMap((line) => this.#take(line));
  }

  /** One whole line: an empty one ends the event. */
  #take(line: string): ServerEvent[] {
    if (!line) return this.#dispatch();
    const colon = line.indexOf(":");
    const field = colon < 0 ? line : line.slice(0, colon);
    const value = colon < 0 ? "" : line.slice(colon + 1).replace(/^ /, "");
    if (field === "data") this.#data.push(value);
    else if (field === "event") this.#name = value;
    else if (field === "id" && !value.includes("\0")) this.#id = value;
    return [];
  }

  #dispatch(): ServerEvent[] {
    const event = { name: this.#name || "message", data: this.#data.join("\n"), id: this.#id };
    const whole = this.#data.length > 0;
    this.#name = "";
    this.#data = [];
    return whole ? [event] : [];
  }
}
