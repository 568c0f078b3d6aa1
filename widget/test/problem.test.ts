import assert from "node:assert/strict";
import { test } from "node:test";
import { responseProblem, parseRetryAfter } from "../src/transport/problem.ts";
import { textLoaders } from "../src/texts/languages-bundled.ts";

test("Retry-After in seconds, as a date, and as nonsense", () => {
  const now = Date.parse("2026-11-24T12:00:00Z");
  assert.equal(parseRetryAfter("7", now), 7);
  assert.equal(parseRetryAfter("Tue, 24 Nov 2026 12:00:30 GMT", now), 30);
  assert.equal(parseRetryAfter("Tue, 24 Nov 2026 11:00:00 GMT", now), 1);
  assert.equal(parseRetryAfter("999999", now), 3600);
  assert.equal(parseRetryAfter("soon", now), 5);
  assert.equal(parseRetryAfter("", now), 5);
  assert.equal(parseRetryAfter(null, now), 5);
});

test("each status is told by what the visitor can do", async () => {
  const kind = async (status: number): Promise<string> => (await responseProblem(new Response("{}", { status }))).kind;
  const expected = { 400: "refused", 401: "denied", 403: "denied", 404: "missing", 413: "refused", 429: "busy", 500: "failed", 503: "busy" };
  for (const [status, name] of Object.entries(expected)) assert.equal(await kind(Number(status)), name);
});

test("the server's sentence is kept, whatever else the body holds", async () => {
  const detail = async (body: string): Promise<string> => (await responseProblem(new Response(body, { status: 400 }))).detail;
  assert.equal(await detail('{"error":{"message":"Too long."}}'), "Too long.");
  for (const body of ["", "null", "[]", '{"error":1}', '{"error":{"message":{}}}', "<html>"]) assert.equal(await detail(body), "");
});

test("every language says everything, and numbers reach the texts that have them", async () => {
  const english = await textLoaders.get("en")!();
  const paths = (value: object): string[] =>
    Object.entries(value).flatMap(([name, inner]) => (typeof inner === "object" ? paths(inner).map((path) => `${name}.${path}`) : [name]));
  assert.equal(textLoaders.size, 5);
  for (const [code, table] of textLoaders) {
    const texts = await table();
    assert.deepEqual(paths(texts), paths(english), code);
    assert.equal(texts.code, code);
    assert.match(texts.wait(7), /7/);
    assert.ok(!JSON.stringify(texts).includes('""'), `${code} has an empty text`);
  }
});

test("a document's language decides, and English where there is none", async () => {
  Object.assign(globalThis, { LANGUAGES: { en: "data:text/javascript,export default {code:'en'}", de: "data:text/javascript,export default {code:'de'}" } });
  const { textsFor } = await import("../src/texts/select.ts");
  const code = async (language: string): Promise<string> => (await textsFor(language)).code;
  for (const language of ["en", "en-GB", "EN", "xx", "", "constructor", "__proto__"]) assert.equal(await code(language), "en");
  for (const language of ["de", "de-AT", "DE"]) assert.equal(await code(language), "de");
});
