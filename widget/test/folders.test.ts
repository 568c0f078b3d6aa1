/** Checks the layout of src/: which folder imports which, and how many entries a folder has. */
import assert from "node:assert/strict";
import { readdirSync, readFileSync } from "node:fs";
import { dirname, join, normalize } from "node:path";
import { test } from "node:test";

/** The folders that each folder imports, types included. A folder imports only ones below it, so there are no cycles. */
const IMPORTS: Record<string, string[]> = {
  entries: ["chat", "chunks", "dom", "extras", "host", "panel", "texts", "transport"],
  extras: ["chunks", "conversation", "dom", "host", "markdown", "panel", "texts", "transport"],
  host: ["dom"],
  chat: ["chunks", "conversation", "dom", "panel", "texts", "transport"],
  panel: ["chunks", "conversation", "dom", "markdown", "texts"],
  chunks: ["conversation", "dom", "markdown", "texts", "transport"],
  conversation: ["dom", "transport"],
  texts: ["dom", "transport"],
  transport: ["dom"],
  markdown: ["dom"],
  dom: [],
};
const MAX_ENTRIES = 12;

/** Lists the folders below `path`, itself included. */
function foldersIn(path: string): string[] {
  const inner = readdirSync(path, { withFileTypes: true }).filter((entry) => entry.isDirectory());
  return [path, ...inner.flatMap(({ name }) => foldersIn(join(path, name)))];
}

/** Finds the top-level folders that the modules of `folder` import, itself excluded. */
function importsOf(folder: string): string[] {
  const found = new Set<string>();
  for (const path of foldersIn(join("src", folder))) {
    for (const file of readdirSync(path).filter((name) => name.endsWith(".ts"))) {
      const text = readFileSync(join(path, file), "utf8");
      for (const [, target = ""] of text.matchAll(/(?:from|import)\s*\(?\s*"(\.[^"]+)"/g)) {
        found.add(normalize(join(dirname(join(path, file)), target)).split("/")[1] ?? "");
      }
    }
  }
  found.delete(folder);
  return [...found].sort();
}

test("each folder imports exactly what the table says", () => {
  const folders = readdirSync("src", { withFileTypes: true }).filter((entry) => entry.isDirectory()).map(({ name }) => name);
  assert.deepEqual(folders.sort(), Object.keys(IMPORTS).sort());
  for (const [folder, imports] of Object.entries(IMPORTS)) assert.deepEqual(importsOf(folder), imports, folder);
});

test("a folder imports only folders below it in the table", () => {
  const order = Object.keys(IMPORTS);
  for (const [folder, imports] of Object.entries(IMPORTS)) {
    for (const target of imports) assert.ok(order.indexOf(target) > order.indexOf(folder), `${folder} imports ${target}`);
  }
});

test("README.md has the same table", () => {
  const readme = readFileSync("README.md", "utf8");
  const rows = [...readme.matchAll(/^\| `(\w+)\/` \| .+ \| (.+) \|$/gm)].map(([, folder = "", imports = ""]) => [folder, imports]);
  assert.deepEqual(rows, Object.entries(IMPORTS).map(([folder, imports]) => [folder, imports.join(", ") || "nothing"]));
});

test(`no folder has more than ${MAX_ENTRIES} entries`, () => {
  for (const folder of foldersIn("src")) assert.ok(readdirSync(folder).length <= MAX_ENTRIES, folder);
});
