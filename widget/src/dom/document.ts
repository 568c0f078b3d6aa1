/** Accesses the browser's own members on pages that shadow them (`<form name="createElement">`) or extend every object. */

/** Reads a member of the document's prototype, also where a library replaced the global `Document`; methods are bound to `document`. */
export function documentMember<Name extends keyof Document>(name: Name): Document[Name] {
  const value: unknown = Reflect.get(Reflect.getPrototypeOf(document)!, name, document);
  // Uses a closure because old libraries replace `bind`.
  return (typeof value === "function" ? (...values: unknown[]) => value.call(document, ...values) : value) as Document[Name];
}

/** Copies `value` into an object without a prototype, since browser functions also read inherited options. */
export function withoutPrototype<Value extends object>(value: Value): Value {
  return Object.assign(Object.create(null), value);
}

/** Listens in the capture phase until `signal` aborts. */
export function listen(target: EventTarget, name: string, listener: (event: Event) => void, signal: AbortSignal): void {
  target.addEventListener(name, listener, withoutPrototype({ capture: true, signal }));
}
