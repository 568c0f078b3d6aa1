// Makes the chat anew with what the form says, and shows the script line for it.
window.SkillChat ??= function () {
  (window.SkillChat.q ??= []).push(arguments);
};

// Name, hint, and the choices of an option; `true` for one that is on or off.
const OPTIONS = {
  "Place": [
    ["mode", "in the corner, or in the page", ["floating", "inline"]],
    ["position", "", ["right", "left"]],
    ["offset-x", "40px"],
    ["offset-y", "90px, above a cookie banner"],
    ["width", "30em"],
    ["height", "34em"],
    ["z-index", "5: below what the page puts above it"],
    ["load", "use: an inline chat waits for a click", ["", "use"]],
    ["open", "once a visitor, not on phones", true],
  ],
  "Looks": [
    ["accent", "#ffd400"],
    ["header", "#123456"],
    ["theme", "", ["", "light", "dark"]],
    ["font", "Georgia, serif"],
    ["radius", "4px"],
    ["wallpaper", "linear-gradient(#8882, #0000)"],
    ["logo", "an address of an image"],
    ["avatar", "an address of an image"],
  ],
  "Launcher": [
    ["label", "Ask us"],
    ["icon", '"?"'],
    ["size", "1.25"],
    ["launcher", "none hides it", ["", "none"]],
    ["teaser", "Looking for roses?"],
    ["teaser-after", "seconds: 1"],
    ["teaser-at", "a selector: #place"],
    ["teaser-phone", "on small screens too", true],
  ],
  "Words": [
    ["title", "Garden help"],
    ["greeting", "Hello, **gardener**!"],
    ["starters", "One?|Two?"],
    ["follow-ups", "And then?|Why?"],
    ["lang", "", ["", "en", "de", "fr", "es", "it", "nl", "pl", "pt", "ja", "ar"]],
    ["dir", "", ["", "ltr", "rtl"]],
    ["texts", '{"placeholder": "Ask the gardener"}'],
  ],
  "Data": [
    ["key", "a site key"],
    ["persist", "", ["", "session", "local", "none"]],
    ["event-text", "events carry what was written", true],
  ],
};
const EVENTS = ["ready", "open", "close", "message", "response.start", "response.end", "error", "feedback", "reset"];
const form = document.querySelector("#options");
const { skill, widget } = document.body.dataset;

function make(name, properties, ...children) {
  const node = Object.assign(document.createElement(name), properties);
  node.append(...children);
  return node;
}

function field([name, hint, kind]) {
  let input;
  if (kind === true) input = make("input", { type: "checkbox" });
  else if (kind) input = make("select", {}, ...kind.map((value) => make("option", { value }, value || "as it is")));
  else input = make("input", { type: "text", placeholder: hint, autocomplete: "off" });
  Object.assign(input, { name, id: `option-${name}` });
  const label = make("label", { htmlFor: input.id }, name);
  return make("div", {}, label, input, ...(kind && hint ? [make("p", {}, hint)] : []));
}

function chosen() {
  const options = { skill };
  for (const { name, type, checked, value, options: choices } of form.elements) {
    const plain = choices ? choices[0].value : "";
    if (type === "checkbox" ? checked : value.trim() !== plain) options[name] = type === "checkbox" ? "true" : value.trim();
  }
  return options;
}

const quoted = (value) => `"${value.replaceAll("&", "&amp;").replaceAll('"', "&quot;")}"`;

function show() {
  const options = chosen();
  const attributes = Object.entries(options).map(([name, value]) => `data-${name}=${quoted(value)}`);
  document.querySelector("#line").textContent = `<script async src=${quoted(widget)}\n  ${attributes.join("\n  ")}></script>`;
  if (options.mode === "inline") options.target = "#place";
  window.SkillChat.host?.call("destroy");
  window.SkillChat("init", options);
}

for (const [heading, options] of Object.entries(OPTIONS)) form.append(make("h2", {}, heading), ...options.map(field));
form.addEventListener("submit", (event) => event.preventDefault());
form.addEventListener("change", show);
for (const name of ["open", "close", "toggle", "reset"]) {
  document.querySelector("#calls").append(make("button", { type: "button", onclick: () => window.SkillChat(name) }, name));
}
const heard = [];
for (const name of EVENTS) {
  document.addEventListener(`skillchat:${name}`, ({ detail }) => {
    heard.unshift(`${name} ${JSON.stringify(detail)}`);
    document.querySelector("#events").textContent = heard.slice(0, 4).join(" · ");
  });
}
show();
