import assert from "node:assert/strict";
import { test } from "node:test";
import { codes, load } from "../src/texts/languages-bundled.ts";

test("every language has every text, with its numbers", async () => {
  const english = await load("en");
  const paths = (value: object): string[] =>
    Object.entries(value).flatMap(([name, inner]) => (typeof inner === "object" ? paths(inner).map((path) => `${name}.${path}`) : [name]));
  assert.equal(codes.length, 5);
  for (const code of codes) {
    const texts = await load(code);
    assert.deepEqual(paths(texts), paths(english), code);
    assert.equal(texts.code, code);
    assert.match(texts.wait(7), /7/);
    assert.ok(!JSON.stringify(texts).includes('""'), `${code} has an empty text`);
  }
});

test("the language tag selects the texts, and English is the default", async () => {
  const { codeOf } = await import("../src/texts/select.ts");
  const code = async (language: string): Promise<string> => codeOf(language, ["en", "de"]);
  for (const language of ["en", "en-GB", "EN", "xx", "", "constructor", "__proto__"]) assert.equal(await code(language), "en");
  for (const language of ["de", "de-AT", "DE"]) assert.equal(await code(language), "de");
});
