// What axe-core finds on the page in each state that a person meets, in light and dark, on a screen and a telephone.
// Arguments: the address, the browser, a folder for screenshots.
import { strict as assert } from "node:assert";
import { readFile } from "node:fs/promises";
import { createRequire } from "node:module";
import { chromium } from "playwright-core";

const [address, executablePath, shots] = process.argv.slice(2);
const axe = await readFile(createRequire(import.meta.url).resolve("axe-core/axe.min.js"), "utf8");
const browser = await chromium.launch({ executablePath, args: ["--no-sandbox", "--disable-background-networking"] });
// A colour on its way to another one is neither.
const context = await browser.newContext({ viewport: { width: 1280, height: 900 }, reducedMotion: "reduce" });
const page = await context.newPage();
const found = [];
let states = 0;

const look = async (state) => {
  states += 1;
  await page.screenshot({ path: `${shots}/${state.replaceAll(" ", "-")}.png`, fullPage: true });
  await page.evaluate(axe);
  const { violations, passes } = await page.evaluate(() => globalThis.axe.run());
  assert.ok(passes.length > 10, `axe checked next to nothing: ${passes.length} rules`);
  for (const { id, impact, help, nodes } of violations) {
    const where = nodes.slice(0, 3).map((node) => `${node.html} (${node.failureSummary})`).join("; ");
    found.push({ impact, text: `${impact}: ${state}: ${id}: ${help}: ${where}` });
  }
};
const inBoth = async (state) => {
  for (const scheme of ["light", "dark"]) {
    await page.emulateMedia({ colorScheme: scheme });
    await look(`${state} ${scheme}`);
  }
};
const done = (count) => page.waitForFunction(
  (wanted) => document.querySelectorAll("figure[data-done]").length === wanted && document.getElementById("stop").disabled,
  count, { timeout: 90000 });

await page.goto(address);
await page.waitForFunction(() => document.getElementById("server").textContent.startsWith("ready"));
await inBoth("fresh");

await page.fill("#prompt", "apple zebra");
await page.fill("#seed", "7");
await page.fill("#a", "mulo:scale=2:rows_per_cycle=2");
await page.fill("#b", "serial");
await fetch(`${address}/test/slow`, { method: "POST" });
await page.click("#draw");
await page.waitForFunction(() => document.querySelector("figure .state")?.textContent.startsWith("drawing, "));
await inBoth("drawing");
await fetch(`${address}/test/fast`, { method: "POST" });
await done(2);
await page.check("#map");
await inBoth("drawn");
await page.setViewportSize({ width: 360, height: 740 });
await inBoth("telephone");
await page.setViewportSize({ width: 1280, height: 900 });

await page.fill("#a", "nonsense");
await page.click("#draw");
await page.waitForFunction(() => /decoders must be chosen from/.test(document.getElementById("notice").textContent));
assert.deepEqual(await page.$$eval("figure .state", (all) => all.map((one) => one.textContent)), ["failed", "not drawn"]);
await inBoth("refused");

await browser.close();
console.log(found.map((one) => one.text).join("\n"));
const grave = found.filter((one) => ["serious", "critical"].includes(one.impact));
assert.deepEqual(grave.map((one) => one.text), []);
console.log(`axe-core looked at ${states} states`);
