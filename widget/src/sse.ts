/**
 * Reads server-sent events from bytes as they arrive, wherever they are cut, and gives the data of each whole event.
 * Knows LF, CR, CRLF, a byte order mark, comments and characters split between chunks; event names and ids are ignored.
 */
export class EventReader {
  #decoder = new TextDecoder();
  #line = "";
  #data: string[] = [];
  #afterReturn = false;

  /** Take the next bytes; return the data of every event that they complete. */
  push(bytes: Uint8Array): string[] {
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
  #take(line: string): string[] {
    if (!line) {
      const data = this.#data;
      this.#data = [];
      return data.length ? [data.join("\n")] : [];
    }
    const field = /^data(?:: ?(.*))?$/s.exec(line);
    if (field) this.#data.push(field[1] ?? "");
    return [];
  }
}
