// How a client's script tells what worked: one JSON line for each feature.
export const { EXAM_URL: url, EXAM_KEY: key, EXAM_MODEL: model, EXAM_ENCODER: encoder } = process.env;
const FAILURE = 300;

export async function feature(name, run) {
  let line;
  try {
    line = { feature: name, ok: true, seen: (JSON.stringify(await run()) ?? "").slice(0, FAILURE) };
  } catch (error) {
    line = { feature: name, ok: false, seen: `${error.name}: ${error.message}`.slice(0, FAILURE) };
  }
  console.log(JSON.stringify(line));
}

export function check(condition, what) {
  if (!condition) throw new Error(`not so: ${what}`);
}
