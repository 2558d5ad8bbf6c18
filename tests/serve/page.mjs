// What a person does on the page, in Chromium. Arguments: the address, the browser, a folder for screenshots.
import { strict as assert } from "node:assert";
import { chromium } from "playwright-core";

const [address, executablePath, shots] = process.argv.slice(2);
const browser = await chromium.launch({ executablePath, args: ["--no-sandbox", "--disable-background-networking"] });
const context = await browser.newContext({ viewport: { width: 1280, height: 900 } });
await context.grantPermissions(["clipboard-read", "clipboard-write"], { origin: address });
const page = await context.newPage();
const complaints = [];
page.on("pageerror", (error) => complaints.push(error.message));
page.on("console", (message) => {
  // A refused request is what a test asks for; a policy that is broken is not.
  if (message.type() === "error" && !message.text().startsWith("Failed to load resource")) complaints.push(message.text());
});
page.on("request", (request) => {
  if (!/^(blob|data):/.test(request.url()) && !request.url().startsWith(address)) complaints.push(`asks ${request.url()}`);
});
page.on("dialog", (dialog) => { complaints.push(`dialog ${dialog.message()}`); dialog.dismiss(); });

const done = (count) => page.waitForFunction(
  (wanted) => document.querySelectorAll("figure[data-done]").length === wanted && document.getElementById("stop").disabled,
  count, { timeout: 90000 });
const bytes = (number) => page.evaluate(async (index) => {
  const image = document.querySelectorAll("#sides img")[index];
  const canvas = document.createElement("canvas");
  [canvas.width, canvas.height] = [image.naturalWidth, image.naturalHeight];
  canvas.getContext("2d").drawImage(image, 0, 0);
  return canvas.toDataURL();
}, number);
const text = (selector) => page.textContent(selector);
const metric = async (name) => {
  const all = await (await fetch(`${address}/metrics`)).text();
  return Number(all.split("\n").find((line) => line.startsWith(name))?.split(" ").pop() ?? 0);
};

await page.goto(address);
await page.waitForFunction(() => document.getElementById("server").textContent.startsWith("ready"));
assert.deepEqual(await page.$$eval("#size option", (all) => all.map((one) => one.value)), ["16x16", "8x8", "4x4"]);

// By keyboard: prompt, seed, both decoders, Ctrl+Enter. A prompt stays text.
await page.focus("#prompt");
await page.keyboard.type('apple <img src=x onerror="alert(1)"> zebra');
await page.fill("#seed", "7");
await page.fill("#a", "mulo:scale=2:rows_per_cycle=2");
await page.fill("#b", "serial");
await page.keyboard.press("Control+Enter");
await done(2);
assert.equal(await text("#what"), 'apple <img src=x onerror="alert(1)"> zebra');
assert.equal(await page.$$eval("#what img, #history .line img, #notice img", (all) => all.length), 0);
const previews = Number(await page.getAttribute("figure:first-child", "data-previews"));
// A draft and a band for each of four strips; a busy server leaves older ones out.
assert.ok(previews >= 2 && previews <= 8, `${previews} previews`);
assert.match(await text("#notice"), /does not know/);
assert.match(await text("#verdict"), /^[AB] took .* times as fast on the same seed\.$/);
assert.match(await text("figure:first-child dl"), /rejected/);
assert.match(await text("figure:last-child dl"), /64 serial|63 serial/);
const [first, second] = [await bytes(0), await bytes(1)];

// The map: one cell a token, with cells that were rejected, and no map for a decoder that verifies nothing.
await page.check("#map");
const cells = await page.evaluate(() => [...document.querySelectorAll("#sides canvas")].map((c) => [c.hidden, c.width]));
assert.deepEqual(cells[0], [false, 8]);
assert.equal(cells[1][0], true);
assert.equal(await page.isVisible("#legend"), true);
await page.screenshot({ path: `${shots}/page.png`, fullPage: true });
await page.uncheck("#map");

// Same seed, same image.
await page.click("#draw");
await done(2);
assert.equal(await bytes(0), first);
assert.equal(await bytes(1), second);
// It is kept behind the drawing.
await page.waitForFunction(() => document.querySelectorAll("#history li").length === 2);

// History survives a reload, and shows an entry again without drawing it.
const images = await metric("mulosd_requests_total{status=\"finished\"}");
await page.reload();
await page.waitForFunction(() => document.querySelectorAll("#history li").length === 2);
assert.equal(await page.inputValue("#prompt"), 'apple <img src=x onerror="alert(1)"> zebra');
await page.click("#history li:last-child button");
assert.equal(await bytes(0), first);
assert.equal(await metric("mulosd_requests_total{status=\"finished\"}"), images);
await page.click("figure:first-child .actions button:last-child");
await page.waitForFunction(() => document.querySelector("figure .actions button:last-child").textContent === "Copied");
assert.match(await page.evaluate(() => navigator.clipboard.readText()), /^curl -s .*"seed":7/);

// Stop: the server gives the work up.
const aborted = await metric("mulosd_requests_total{status=\"aborted\"}");
await fetch(`${address}/test/slow`, { method: "POST" });
await page.fill("#a", "serial");
await page.click("#draw");
await page.waitForFunction(() => document.querySelector("figure .state")?.textContent.startsWith("drawing, "));
await page.keyboard.press("Escape");
await page.waitForFunction(() => document.querySelector("figure .state").textContent === "stopped");
for (let tries = 0; (await metric("mulosd_requests_total{status=\"aborted\"}")) === aborted; tries += 1) {
  assert.ok(tries < 100, "the request was not given up");
  await page.waitForTimeout(100);
}
assert.equal(await metric("mulosd_places_taken"), 0);
await fetch(`${address}/test/fast`, { method: "POST" });

// A full queue: a notice that counts down, then another try.
await fetch(`${address}/test/full`, { method: "POST" });
await page.uncheck("#compare");
await page.click("#draw");
await page.waitForFunction(() => /queue is full. Trying again in \d+ s/.test(document.getElementById("notice").textContent));
await fetch(`${address}/test/free`, { method: "POST" });
await done(1);

// What cannot be is told.
await page.fill("#a", "nonsense");
await page.click("#draw");
await page.waitForFunction(() => /decoders must be chosen from/.test(document.getElementById("notice").textContent));

// Every field has a name, dark and light change, and nothing is wider than a telephone.
const nameless = await page.$$eval("input, select, textarea, button", (all) => all.filter((one) =>
  !one.labels?.length && !one.getAttribute("aria-label") && !one.textContent.trim()).map((one) => one.id || one.outerHTML));
assert.deepEqual(nameless, []);
const ground = () => page.evaluate(() => getComputedStyle(document.body).backgroundColor);
const light = await ground();
await page.click("#theme");
assert.notEqual(await ground(), light);
await page.setViewportSize({ width: 360, height: 740 });
assert.ok(await page.evaluate(() => document.documentElement.scrollWidth) <= 360);

// On a telephone the images lie below the form: drawing brings them up, with Stop above them.
await page.fill("#a", "serial");
await page.evaluate(() => scrollTo(0, 0));
await page.click("#draw");
await done(1);
const tops = await page.evaluate(() => ["#stop", "figure"].map((one) => document.querySelector(one).getBoundingClientRect().top));
assert.ok(tops[0] >= 0 && tops[0] < 100 && tops[1] < 400, `Stop and the image are at ${tops}`);
assert.equal(await page.$$eval("figure wbr", (all) => all.length), 2, "serial:grid=8 breaks behind its colon alone");
await page.click("#clear");
await page.waitForFunction(() => document.querySelectorAll("#history li").length === 0);

assert.deepEqual(complaints, []);
await browser.close();
console.log("the page works");
