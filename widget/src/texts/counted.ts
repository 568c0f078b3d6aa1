/** Puts numbers into sentences by the language's own plural and number rules, and the page's own words in place of ours. */

/** Sentences by plural category, with `#` for the number; `other` serves the categories left out. */
type Forms = Partial<Record<Intl.LDMLPluralRule, string>> & { other: string };

/** Returns a function that puts a count into the sentence for it. */
export function counted(code: string, forms: Forms): (count: number) => string {
  return (count) => (forms[new Intl.PluralRules(code).select(count)] ?? forms.other).replace("#", new Intl.NumberFormat(code).format(count));
}

/** Replaces texts by the ones of the option `texts`, JSON with their names; a sentence with a number has `#` for it, or a form for each plural category. */
export function override<Texts extends { code: string }>(texts: Texts, json: string): Texts {
  const merge = <Part extends object>(own: Part, given: unknown): Part => {
    const merged: Record<string, unknown> = { __proto__: null!, ...own };
    for (const [name, value] of Object.entries(given ?? {})) {
      const before = merged[name];
      if (typeof before === "function") merged[name] = counted(texts.code, typeof value === "string" ? { other: value } : (value as Forms));
      else if (typeof before === "string" && name !== "code") merged[name] = String(value);
      else if (typeof before === "object") merged[name] = merge(before as object, value);
      else console.warn(`widget.js: no text is called ${name}`);
    }
    return merged as Part;
  };
  try {
    return json ? merge(texts, JSON.parse(json)) : texts;
  } catch (error) {
    console.warn(`widget.js: the option texts is no JSON: ${error}`);
    return texts;
  }
}
