/** Parses server-sent events from bytes cut anywhere, following the HTML standard. */

export interface ServerEvent {
  name: string;
  data: string;
  /** The stream's last event id, set by this event or an earlier one. */
  id: string;
}

export class EventStreamParser {
  #decoder = new TextDecoder();
  #line = "";
  #afterReturn = false;
  #name = "";
  #data: string[] = [];
  #id = "";

  /** Parses the next bytes and returns the events that they complete. */
  push(bytes: Uint8Array): ServerEvent[] {
    let text = this.#decoder.decode(bytes, { stream: true });
    if (!text) return [];
    if (this.#afterReturn && text[0] === "\n") text = text.slice(1);
    this.#afterReturn = text ? text.endsWith("\r") : false;
    const lines = text.split(/\r\n|\r|\n/);
    lines[0] = this.#line + lines[0];
    this.#line = lines.pop() ?? "";
    return lines.flatMap((line) => this.#parseLine(line));
  }

  /** Parses one whole line; an empty one dispatches the event. */
  #parseLine(line: string): ServerEvent[] {
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
    const hasData = this.#data.length > 0;
    this.#name = "";
    this.#data = [];
    return hasData ? [event] : [];
  }
}
