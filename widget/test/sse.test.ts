import assert from "node:assert/strict";
import { test } from "node:test";
import { EventReader } from "../src/sse.ts";

const STREAMS: [name: string, text: string, events: string[]][] = [
  ["line feeds", "data: a\n\ndata: b\n\n", ["a", "b"]],
  ["returns and line feeds", "data: a\r\n\r\ndata: b\r\n\r\n", ["a", "b"]],
  ["returns", "data: a\r\rdata: b\r\r", ["a", "b"]],
  ["a mixture", "data: a\r\n\ndata: b\n\r\ndata: c\r\r\n", ["a", "b", "c"]],
  ["a byte order mark", "\uFEFFdata: a\n\n", ["a"]],
  ["comments and other fields", ": ping\n\nevent: x\nid: 1\nretry: 5\ndata: a\n: note\n\n", ["a"]],
  ["several lines of data", "data: a\ndata: b\ndata\ndata:\n\n", ["a\nb\n\n"]],
  ["no space, two spaces", "data:a\n\ndata:  b\n\n", ["a", " b"]],
  ["fields that only look like data", "database: a\nDATA: b\n data: c\n\n", []],
  ["an event that never ends", "data: a\n\ndata: b\n", ["a"]],
  ["characters of several bytes", "data: 🌱é日\u2028x\n\ndata: {\"a\":1}\n\n", ["🌱é日\u2028x", '{"a":1}']],
];

for (const [name, text, events] of STREAMS) {
  const bytes = new TextEncoder().encode(text);
  test(`${name}, cut at every place`, () => {
    assert.deepEqual(new EventReader().push(bytes), events);
    const reader = new EventReader();
    assert.deepEqual([...bytes].flatMap((byte) => reader.push(Uint8Array.of(byte))), events);
    for (let cut = 0; cut <= bytes.length; cut++) {
      const halves = new EventReader();
      assert.deepEqual([...halves.push(bytes.slice(0, cut)), ...halves.push(bytes.slice(cut))], events, `cut at ${cut}`);
    }
  });
}
