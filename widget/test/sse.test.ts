import assert from "node:assert/strict";
import { test } from "node:test";
import { createParser } from "eventsource-parser";
import { EventStreamParser, type ServerEvent } from "../src/transport/sse.ts";

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

const dataOf = (events: ServerEvent[]): string[] => events.map((event) => event.data);

for (const [name, text, events] of STREAMS) {
  const bytes = new TextEncoder().encode(text);
  test(`${name}, cut anywhere`, () => {
    assert.deepEqual(dataOf(new EventStreamParser().push(bytes)), events);
    const ours = new EventStreamParser();
    assert.deepEqual(dataOf([...bytes].flatMap((byte) => ours.push(Uint8Array.of(byte)))), events);
    for (let cut = 0; cut <= bytes.length; cut++) {
      const halves = new EventStreamParser();
      const read = [...halves.push(bytes.slice(0, cut)), ...halves.push(bytes.slice(cut))];
      assert.deepEqual(dataOf(read), events, `cut at ${cut}`);
    }
  });
}

test("names reset and ids persist, as the standard says", () => {
  const stream = "id: 1\nevent: a\ndata: x\n\ndata: y\n\nid: 2\n\nevent: b\n\ndata: z\nid: 3\0\n\nid\ndata: w\n\n";
  assert.deepEqual(new EventStreamParser().push(new TextEncoder().encode(stream)), [
    { name: "a", data: "x", id: "1" },
    { name: "message", data: "y", id: "1" },
    { name: "message", data: "z", id: "2" },
    { name: "message", data: "w", id: "" },
  ]);
});

const PIECES = ["data: a", "data:b", "data", "data: 🌱é", "event: x", "event", "id: 7", "id", "id: 🌱", ": note", ":", "retry: 9", "x: y", " data: c", "\n", "\r", "\r\n", "\n\n", "\r\r", "\r\n\r\n"];

/** Builds a stream of random pieces; equal seeds give equal streams. */
function randomStream(random: () => number): Uint8Array {
  const pieces = Array.from({ length: 30 }, () => PIECES[Math.floor(random() * PIECES.length)]);
  const lines = pieces.map((piece) => (/^[\r\n]/.test(piece ?? "") || random() < 0.2 ? piece : `${piece}\n`));
  return new TextEncoder().encode((random() < 0.2 ? "\uFEFF" : "") + lines.join("") + "\n\n");
}

test("eventsource-parser agrees on random streams with random cuts", () => {
  let state = 1;
  const random = (): number => (state = (state * 48271) % 2147483647) / 2147483647;
  let seen = 0;
  for (let round = 0; round < 2000; round++) {
    const bytes = randomStream(random);
    const expected: ServerEvent[] = [];
    const parser = createParser({ onEvent: ({ event = "message", data }) => expected.push({ name: event, data, id: "" }) });
    parser.feed(new TextDecoder().decode(bytes));
    const ours = new EventStreamParser();
    const read = [];
    for (let at = 0; at < bytes.length; ) {
      const size = 1 + Math.floor(random() * 9);
      read.push(...ours.push(bytes.slice(at, (at += size))));
    }
    seen += expected.length;
    assert.deepEqual(read.map((event) => ({ ...event, id: "" })), expected, JSON.stringify(new TextDecoder().decode(bytes)));
  }
  assert.ok(seen > 1000, `${seen} events`);
});
