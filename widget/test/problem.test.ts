import assert from "node:assert/strict";
import { test } from "node:test";
import { responseProblem, parseRetryAfter } from "../src/transport/problem.ts";

test("Retry-After in seconds, as a date, and malformed", () => {
  const now = Date.parse("2026-11-24T12:00:00Z");
  assert.equal(parseRetryAfter("7", now), 7);
  assert.equal(parseRetryAfter("Tue, 24 Nov 2026 12:00:30 GMT", now), 30);
  assert.equal(parseRetryAfter("Tue, 24 Nov 2026 11:00:00 GMT", now), 1);
  assert.equal(parseRetryAfter("999999", now), 3600);
  assert.equal(parseRetryAfter("soon", now), 5);
  assert.equal(parseRetryAfter("", now), 5);
  assert.equal(parseRetryAfter(null, now), 5);
});

test("each status maps to what the visitor can do", async () => {
  const kind = async (status: number): Promise<string> => (await responseProblem(new Response("{}", { status }))).kind;
  const expected = { 400: "refused", 401: "denied", 403: "denied", 404: "missing", 413: "refused", 429: "busy", 500: "failed", 503: "busy" };
  for (const [status, name] of Object.entries(expected)) assert.equal(await kind(Number(status)), name);
});

test("the server's message is kept, whatever shape the body has", async () => {
  const detail = async (body: string): Promise<string> => (await responseProblem(new Response(body, { status: 400 }))).detail;
  assert.equal(await detail('{"error":{"message":"Too long."}}'), "Too long.");
  for (const body of ["", "null", "[]", '{"error":1}', '{"error":{"message":{}}}', "<html>"]) assert.equal(await detail(body), "");
});
