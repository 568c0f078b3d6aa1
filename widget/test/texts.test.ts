import assert from "node:assert/strict";
import { test } from "node:test";
import { textLoaders } from "../src/texts/languages-bundled.ts";

test("every language has every text, with its numbers", async () => {
  const english = await textLoaders.get("en")!();
  const paths = (value: object): string[] =>
    Object.entries(value).flatMap(([name, inner]) => (typeof inner === "object" ? paths(inner).map((path) => `${name}.${path}`) : [name]));
  assert.equal(textLoaders.size, 5);
  for (const [code, load] of textLoaders) {
    const texts = await load();
    assert.deepEqual(paths(texts), paths(english), code);
    assert.equal(texts.code, code);
    assert.match(texts.wait(7), /7/);
    assert.ok(!JSON.stringify(texts).includes('""'), `${code} has an empty text`);
  }
});

test("the language tag selects the texts, and English is the default", async () => {
  Object.assign(globalThis, { LANGUAGES: { en: "data:text/javascript,export default {code:'en'}", de: "data:text/javascript,export default {code:'de'}" } });
  const { textsFor } = await import("../src/texts/select.ts");
  const code = async (language: string): Promise<string> => (await textsFor(language)).code;
  for (const language of ["en", "en-GB", "EN", "xx", "", "constructor", "__proto__"]) assert.equal(await code(language), "en");
  for (const language of ["de", "de-AT", "DE"]) assert.equal(await code(language), "de");
});
