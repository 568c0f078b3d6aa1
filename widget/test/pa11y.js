/**
 * Runs pa11y on pages open in Chromium: `node pa11y.js WEBSOCKET`, then `{"title": ..., "runners": [...]}` per line.
 * Answers each line with the issues of the page of that title, as JSON.
 */
import { createInterface } from "node:readline";
import pa11y from "pa11y";
import puppeteer from "puppeteer";

const browser = await puppeteer.connect({ browserWSEndpoint: process.argv[2], defaultViewport: null });
for await (const line of createInterface({ input: process.stdin })) {
  const { title, runners } = JSON.parse(line);
  const pages = await browser.pages();
  const titles = await Promise.all(pages.map((page) => page.title()));
  const page = pages[titles.indexOf(title)];
  const { width, height } = await page.evaluate(() => ({ width: innerWidth, height: innerHeight }));
  // Downgrades what axe cannot decide, such as the contrast of half-scrolled text.
  const options = { runners, levelCapWhenNeedsReview: "warning", viewport: { width, height } };
  const { issues } = await pa11y(page.url(), { browser, page, ignoreUrl: true, ...options });
  console.log(JSON.stringify(issues.map(({ code, message, context }) => [code, message, context])));
}
await browser.disconnect();
