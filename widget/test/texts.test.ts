import assert from "node:assert/strict";
import { test } from "node:test";
import { codes, load } from "../src/texts/languages-bundled.ts";

test("every language has every text, with its numbers", async () => {
  const english = (await load("en")).default;
  const paths = (value: object): string[] =>
    Object.entries(value).flatMap(([name, inner]) => (typeof inner === "object" ? paths(inner).map((path) => `${name}.${path}`) : [name]));
  assert.equal(codes.length, 10);
  for (const code of codes) {
    const texts = (await load(code)).default;
    assert.deepEqual(paths(texts), paths(english), code);
    assert.equal(texts.code, code);
    for (const sentence of [texts.wait, texts.left, texts.over]) {
      assert.ok(sentence(1234).includes(new Intl.NumberFormat(code).format(1234)), code);
      assert.ok(!sentence(1).includes("#"), code);
    }
    assert.ok(!JSON.stringify(texts).includes('""'), `${code} has an empty text`);
  }
});

test("the language tag selects the texts, and English is the default", async () => {
  const { codeOf } = await import("../src/texts/select.ts");
  const code = async (language: string): Promise<string> => codeOf(language, ["en", "de"]);
  for (const language of ["en", "en-GB", "EN", "xx", "", "constructor", "__proto__"]) assert.equal(await code(language), "en");
  for (const language of ["de", "de-AT", "DE"]) assert.equal(await code(language), "de");
});

test("numbers follow the plural rules of the language", async () => {
  const polish = (await load("pl")).default;
  assert.deepEqual([1, 3, 5, 22].map(polish.left), ["Pozostał 1 znak", "Pozostały 3 znaki", "Pozostało 5 znaków", "Pozostały 22 znaki"]);
  assert.equal((await load("en")).default.left(1), "1 character left");
});

test("a page replaces texts by its own, and is told of names that do not exist", async (context) => {
  const warn = context.mock.method(console, "warn", () => {});
  const { default: english, override } = await load("en");
  const own = { send: "Go", left: { one: "# left", other: "# are left" }, wait: "In # s", reasons: { wrong: "False" }, sent: "x", code: "xx" };
  const texts = override(english, JSON.stringify(own));
  assert.deepEqual([texts.send, texts.stop, texts.code], ["Go", english.stop, "en"]);
  assert.deepEqual([texts.left(1), texts.left(2000), texts.wait(3)], ["1 left", "2,000 are left", "In 3 s"]);
  assert.deepEqual({ ...texts.reasons }, { ...english.reasons, wrong: "False" });
  assert.deepEqual(warn.mock.calls.map(({ arguments: [text] }) => String(text).slice(-4)), ["sent", "code"]);
  assert.equal(override(english, "{"), english);
  assert.equal(override(english, ""), english);
});
