// Stacked bars of days and histograms with quantiles, as SVG; pure functions of their arguments.
const SVG = "http://www.w3.org/2000/svg";

export function html(name, attributes = {}, ...children) {
  return fill(document.createElement(name), attributes, children);
}

function svg(name, attributes = {}, ...children) {
  return fill(document.createElementNS(SVG, name), attributes, children);
}

function fill(element, attributes, children) {
  for (const [key, value] of Object.entries(attributes)) {
    if (key.startsWith("--")) element.style.setProperty(key, value);
    else if (value !== undefined) element.setAttribute(key, value);
  }
  element.append(...children);
  return element;
}

export function compact(value) {
  return value.toLocaleString("en", { notation: "compact", maximumFractionDigits: value < 1e4 ? 1 : 0 });
}

export function seconds(value) {
  if (value === undefined) return "-";
  if (value < 1) return `${Math.round(value * 1000)} ms`;
  return `${value.toLocaleString("en", { maximumFractionDigits: value < 10 ? 1 : 0 })} s`;
}

/** Round tick values from 0 to at least `most`. */
export function ticks(most) {
  const rough = Math.max(most, 1) / 4;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = Math.max(1, [1, 2, 2.5, 3, 4, 5, 10].map((n) => n * power).find((n) => n >= rough));
  return Array.from({ length: Math.ceil(Math.max(most, 1) / step) + 1 }, (_, index) => index * step);
}

const date = (day, options) => new Date(`${day}T00:00Z`).toLocaleDateString("en", { timeZone: "UTC", ...options });

/** A bar per day, stacked by skill, in `width` pixels; `use` maps day to skill to tokens. */
export function stacked(days, skills, use, { color, width }) {
  const [height, left, bottom, top] = [width < 600 ? 200 : 250, 44, 24, 10];
  const every = width < 600 ? 10 : 5;
  const sums = days.map((day) => skills.reduce((sum, skill) => sum + (use.get(day)?.get(skill) ?? 0), 0));
  const axis = ticks(Math.max(...sums));
  const scale = (height - bottom - top) / axis.at(-1);
  const pitch = (width - left) / days.length;
  const root = svg("svg", { viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": "Tokens a day, stacked by skill" });
  for (const tick of axis) {
    const y = height - bottom - tick * scale;
    root.append(
      svg("line", { class: "grid", x1: left, x2: width, y1: y, y2: y }),
      svg("text", { x: left - 8, y: y + 4, "text-anchor": "end" }, compact(tick)),
    );
  }
  days.forEach((day, index) => {
    const x = left + index * pitch;
    const label = date(day, { weekday: "short", day: "numeric", month: "long" });
    const lines = skills.filter((skill) => use.get(day)?.get(skill)).map((s) => `${s}: ${use.get(day).get(s).toLocaleString("en")}`);
    const group = svg("g", {}, svg("title", {}, [label, ...(lines.length ? lines : ["no tokens"])].join("\n")));
    group.append(svg("rect", { class: "band", x, y: top, width: pitch, height: height - bottom - top }));
    let y = height - bottom;
    for (const skill of skills) {
      const size = (use.get(day)?.get(skill) ?? 0) * scale;
      y -= size;
      const bar = { x: x + pitch * 0.16, y, width: pitch * 0.68, height: Math.max(0, size - (size > 2 ? 1 : 0)) };
      if (size) group.append(svg("rect", { ...bar, fill: color(skill) }));
    }
    root.append(group);
    if ((days.length - 1 - index) % every === 0) {
      const text = index === days.length - 1 ? "today" : date(day, { day: "numeric", month: "short" });
      const place = index === days.length - 1 ? { x: width, "text-anchor": "end" } : { x: x + pitch / 2, "text-anchor": "middle" };
      root.append(svg("text", { ...place, y: height - 6 }, text));
    }
  });
  return root;
}

/** A histogram of durations on a logarithmic axis, with lines at the median and the 95th percentile. */
export function histogram(values, quantiles, { label, width }) {
  const [height, bottom, top, bins] = [118, 20, 16, 40];
  const low = Math.log10(Math.max(values[0], 1e-4)) - 0.02;
  const high = Math.max(Math.log10(Math.max(values.at(-1), 1e-4)) + 0.02, low + 0.3);
  const place = (value) => ((Math.log10(Math.max(value, 1e-4)) - low) / (high - low)) * width;
  const counts = Array(bins).fill(0);
  for (const value of values) counts[Math.min(bins - 1, Math.max(0, Math.floor((place(value) / width) * bins)))] += 1;
  const scale = (height - bottom - top) / Math.max(...counts);
  const root = svg("svg", { viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": label });
  counts.forEach((count, index) => {
    const size = count * scale;
    const bar = { x: (index * width) / bins + 0.75, y: height - bottom - size, width: width / bins - 1.5, height: size };
    if (count) root.append(svg("rect", { ...bar, fill: "var(--s0)", opacity: 0.8 }));
  });
  root.append(svg("line", { class: "grid", x1: 0, x2: width, y1: height - bottom, y2: height - bottom }));
  const [median, high95] = quantiles.map(place);
  for (const [x, name] of [[median, "p50"], [high95, "p95"]]) {
    if (name === "p95" && high95 - median < 34) continue;
    const anchor = x > width - 24 ? "end" : x < 24 ? "start" : "middle";
    root.append(svg("line", { class: "mark", x1: x, x2: x, y1: top, y2: height - bottom }));
    root.append(svg("text", { class: "strong", x, y: 11, "text-anchor": anchor }, name));
  }
  root.append(svg("text", { x: 0, y: height - 4 }, seconds(values[0])));
  root.append(svg("text", { x: width, y: height - 4, "text-anchor": "end" }, seconds(values.at(-1))));
  return root;
}
