// The page for people. It uses the public API alone: GET /v1/models, POST /v1/images/generations with a stream of
// events, POST /v1/requests/{id}/cancel. Texts go into the page as text, never as HTML.

const KEPT = 100;
const $ = (id) => document.getElementById(id);
const state = { models: new Map(), running: null, shown: null };

function make(tag, text = "", attributes = {}) {
  const element = document.createElement(tag);
  element.textContent = text;
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  return element;
}

// --- the family and its words

async function connect() {
  try {
    const answer = await fetch("v1/models");
    const body = await answer.json();
    if (!answer.ok) throw new Error(body.error.message);
    state.models = new Map(body.data.map((model) => [model.id, model.mulosd]));
  } catch (error) {
    $("server").textContent = `no connection: ${error.message}; trying again …`;
    setTimeout(connect, 2000);
    return;
  }
  const names = [...state.models.keys()];
  $("family").replaceChildren(...names.map((name) => make("option", name, { value: name })));
  const kept = recall("form");
  if (state.models.has(kept.family)) $("family").value = kept.family;
  choose();
  for (const id of ["prompt", "seed", "a", "b", "size"]) if (kept[id]) $(id).value = kept[id];
  if (!$("size").value) $("size").selectedIndex = 0;
  if (kept.compare !== undefined) $("compare").checked = kept.compare;
  $("b").disabled = !$("compare").checked;
  ready();
}

async function ready() {
  try {
    const { status } = await (await fetch("health/ready")).json();
    const count = state.models.size;
    $("server").textContent = status === "ready" ? `ready, ${count} ${count === 1 ? "family" : "families"}` : status;
  } catch {
    $("server").textContent = "no connection";
  }
  setTimeout(ready, 10000);
}

function choose() {
  const facts = state.models.get($("family").value);
  if (!facts) return;
  const sizes = [...facts.image_sizes].reverse();
  $("size").replaceChildren(...sizes.map((size) => make("option", `${size.split("x")[0]} px`, { value: size })));
  $("decoders").replaceChildren(...facts.decoders.map((name) => make("option", "", { value: name })));
  $("a").value ||= facts.default_decoder;
  $("b").value ||= "serial";
  $("prompt").maxLength = facts.max_prompt_chars;
  // What a button says, and what it adds.
  const words = facts.objects.length
    ? [...facts.objects.map((noun) => [noun, noun]), ...facts.backgrounds.map((b) => [`on ${b}`, `on a ${b} background`])]
    : (facts.classes.length ? facts.classes.map((name) => name.split(",")[0]) : facts.words).map((word) => [word, word]);
  $("words").replaceChildren(...words.map(([said, word]) => {
    const button = make("button", said, { type: "button" });
    button.addEventListener("click", () => add(word, facts.classes.length > 0));
    return button;
  }));
  $("words-hint").textContent = facts.classes.length
    ? "This family draws its classes and nothing else: choose one."
    : words.length ? "This family draws these words and nothing else." : "Say what to draw.";
  $("prompt").placeholder = facts.objects.length > 1
    ? `${a(facts.objects[0])} and ${a(facts.objects[1])} on a ${facts.backgrounds[0] ?? "blue"} background` : facts.example;
}

const a = (noun) => `${/^[aeiou]/.test(noun) ? "an" : "a"} ${noun}`;

function add(word, alone) {
  const field = $("prompt");
  const before = field.value.trimEnd();
  const noun = /^on a /.test(word) ? word : a(word);
  field.value = alone ? word : before ? `${before}${/^on a /.test(word) ? " " : " and "}${noun}` : noun;
  field.focus();
}

// --- drawing

class Problem extends Error {
  constructor(message, wait) {
    super(message);
    this.wait = wait;
  }
}

async function* events(body, signal, named) {
  const answer = await fetch("v1/images/generations", {
    method: "POST",
    headers: { "content-type": "application/json", "x-request-id": named },
    body: JSON.stringify(body),
    signal,
  });
  if (!answer.ok) {
    const { error } = await answer.json();
    throw new Problem(error.message, answer.status === 429 ? Number(answer.headers.get("retry-after")) : 0);
  }
  const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
  let held = "";
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return;
    held += value;
    const parts = held.split("\n\n");
    held = parts.pop();
    for (const part of parts) {
      const data = part.split("\n").filter((line) => line.startsWith("data: ")).map((line) => line.slice(6)).join("\n");
      if (!data) continue;
      const event = JSON.parse(data);
      if (event.error) throw new Problem(event.error.message, 0);
      yield event;
    }
  }
}

function blobOf({ b64_json: data, output_format: kind }) {
  return new Blob([Uint8Array.from(atob(data), (letter) => letter.charCodeAt(0))], { type: `image/${kind}` });
}

async function draw() {
  if (state.running) return;
  const prompt = $("prompt").value.trim();
  if (!prompt) { $("prompt").focus(); return; }
  const typed = $("seed").value.trim();
  const seed = typed === "" ? crypto.getRandomValues(new Uint32Array(1))[0] : Number(typed);
  const decoders = [$("a").value.trim(), ...($("compare").checked ? [$("b").value.trim()] : [])];
  const entry = { prompt, family: $("family").value, size: $("size").value, seed, time: Date.now(), results: [] };
  remember("form", { prompt, family: entry.family, size: entry.size, seed: typed, a: $("a").value, b: $("b").value,
    compare: $("compare").checked });
  const control = new AbortController();
  state.running = { control, named: "" };
  busy(true);
  notice("");
  show(entry);
  const sides = decoders.map((decoder) => side({ decoder }, "waits"));
  // Where the images lie below the form, as on a telephone: Stop on top, and what is drawn under it.
  if ($("results").getBoundingClientRect().top > innerHeight / 2) $("draw").parentElement.scrollIntoView();
  try {
    // One after the other: together they would share the machine, and the seconds would say nothing.
    for (const [i, decoder] of decoders.entries()) entry.results.push(await one(entry, decoder, sides[i], control));
    verdict(entry);
  } catch (error) {
    const broken = entry.results.length;
    for (const [i, made] of sides.entries()) {
      if (i >= broken) made.state(i > broken ? "not drawn" : control.signal.aborted ? "stopped" : "failed");
    }
    if (!control.signal.aborted) complain(error);
  }
  state.running = null;
  busy(false);
  if (entry.results.length) {
    await keep(entry);
    await history();
  }
}

async function one(entry, decoder, made, control) {
  // Stop cancels by this name.
  const named = `page-${[...crypto.getRandomValues(new Uint32Array(3))].map((n) => n.toString(16)).join("")}`;
  state.running.named = named;
  const begun = performance.now();
  made.clock(begun);
  const body = { prompt: entry.prompt, model: entry.family, size: entry.size, seed: entry.seed, stream: true,
    mulosd: { decoder, partials: "all", maps: true } };
  let first = null;
  for await (const event of events(body, control.signal, named)) {
    const blob = blobOf(event);
    const seconds = (performance.now() - begun) / 1000;
    if (event.type.endsWith("partial_image")) {
      first ??= seconds;
      made.preview(blob, event.mulosd.kind, seconds);
      continue;
    }
    const { stats, warnings, maps, decoder: spelled } = event.mulosd;
    const result = { decoder, spelled, blob, stats, warnings, maps, first, seconds };
    made.finish(result, entry);
    if (warnings.length) notice(warnings.join(" "));
    return result;
  }
  throw new Problem("the stream ended before the image was there", 0);
}

function stop() {
  if (!state.running) return;
  fetch(`v1/requests/${encodeURIComponent(state.running.named)}/cancel`, { method: "POST" }).catch(() => {});
  state.running.control.abort();
}

function busy(is) {
  $("draw").disabled = is;
  $("stop").disabled = !is;
  $("results").setAttribute("aria-busy", String(is));
}

// --- notices

let counting = 0;
function notice(text, bad = false) {
  clearInterval(counting);
  $("notice").hidden = !text;
  $("notice").textContent = text;
  $("notice").classList.toggle("bad", bad);
}

function complain(error) {
  if (!error.wait) return notice(error.message, true);
  let left = error.wait;
  const tell = () => {
    if (left <= 0) { notice("Trying again …"); draw(); return; }
    $("notice").textContent = `The queue is full. Trying again in ${left} s …`;
    left -= 1;
  };
  notice("The queue is full.");
  tell();
  counting = setInterval(tell, 1000);
}

// --- showing

function show(entry) {
  state.shown = entry;
  $("what").textContent = entry.prompt;
  $("verdict").textContent = "";
  $("sides").replaceChildren();
}

// The decoder whose rows are verified; others show rows as they are drawn.
const VERIFIES = /^mulo\b/;

// A decoder's text, which may go on in the next line behind a colon.
const breakable = (text) => text.split(/(?<=:)/).flatMap((part) => [part, document.createElement("wbr")]);

function side(result, text) {
  const figure = $("side").content.firstElementChild.cloneNode(true);
  $("sides").append(figure);
  const [frame, image, canvas] = [".frame", "img", "canvas"].map((name) => figure.querySelector(name));
  const label = figure.querySelector(".state");
  figure.querySelector(".name").textContent = result.decoder;
  label.textContent = text;
  const picture = (blob, alt) => {
    const before = image.src;
    image.src = URL.createObjectURL(blob);
    if (before.startsWith("blob:")) URL.revokeObjectURL(before);
    image.alt = alt;
    image.hidden = false;
  };
  let ticking = 0;
  return {
    state: (words) => { clearInterval(ticking); label.textContent = words; },
    clock: (begun) => {
      const tick = () => { label.textContent = `drawing, ${((performance.now() - begun) / 1000).toFixed(1)} s`; };
      tick();
      ticking = setInterval(tick, 100);
    },
    preview: (blob, kind, seconds) => {
      figure.dataset.previews = String(Number(figure.dataset.previews ?? 0) + 1);
      frame.classList.toggle("draft", kind === "draft");
      clearInterval(ticking);
      picture(blob, `${kind} of the image that is being drawn`);
      const said = kind === "band" ? (VERIFIES.test(result.decoder) ? "verified" : "drawn") : kind;
      label.textContent = `${said}, ${seconds.toFixed(2)} s`;
    },
    finish: (found, entry) => {
      frame.classList.remove("draft");
      picture(found.blob, `${entry.prompt}, drawn by ${found.decoder} with seed ${entry.seed}`);
      clearInterval(ticking);
      label.textContent = "";
      figure.dataset.done = "1";
      facts(figure, found, entry);
      overlay(canvas, found.maps);
    },
  };
}

function facts(figure, { decoder, spelled, blob, stats, first }, entry) {
  if (spelled !== decoder) figure.querySelector(".spelled").replaceChildren(...breakable(spelled));
  const forwards = Object.entries(stats.forwards);
  const total = forwards.reduce((sum, [, count]) => sum + count, 0);
  const rows = [
    ["seconds", `${(stats.seconds.total - stats.waited).toFixed(2)}`, stats.waited > 0.05 ? ` after ${stats.waited.toFixed(2)} in the queue` : ""],
    ["forwards", String(total), ` (${forwards.map(([role, count]) => `${count} ${role}`).join(", ")})`],
  ];
  if (first) rows.push(["first preview", "", `${first.toFixed(2)} s`]);
  if (stats.rejection !== null) {
    rows.push(["rejected", "", `${percent(stats.rejection)}, redrawn ${percent(stats.coverage)} in ${stats.islands} islands`]);
  }
  rows.push(["seed", "", String(entry.seed)]);
  figure.querySelector("dl").replaceChildren(...rows.flatMap(([term, strong, rest]) => {
    const value = make("dd");
    if (strong) value.append(make("strong", strong));
    value.append(rest);
    return [make("dt", term), value];
  }));
  const link = make("a", "PNG", { download: `mulosd-${decoder.split(":")[0]}-seed${entry.seed}.png` });
  link.href = URL.createObjectURL(blob);
  const seed = make("button", "Use this seed", { type: "button" });
  seed.addEventListener("click", () => { $("seed").value = entry.seed; $("seed").focus(); });
  const curl = make("button", "Copy as curl", { type: "button" });
  curl.addEventListener("click", async () => {
    await navigator.clipboard.writeText(command(entry, spelled));
    curl.textContent = "Copied";
  });
  figure.querySelector(".actions").replaceChildren(link, seed, curl);
}

const percent = (share) => `${(100 * share).toFixed(1)} %`;
const quoted = (text) => `'${text.replaceAll("'", `'\\''`)}'`;
const command = (entry, decoder) => `curl -s ${new URL("v1/images/generations", location.href)} -H 'content-type: application/json' -d ${
  quoted(JSON.stringify({ prompt: entry.prompt, model: entry.family, size: entry.size, seed: entry.seed, mulosd: { decoder } }))
} | jq -r '.data[0].b64_json' | base64 -d > image.png`;

function overlay(canvas, maps) {
  canvas.dataset.map = "";
  if (!maps?.resampled) return;
  const side = maps.resampled.length;
  canvas.width = canvas.height = side;
  const context = canvas.getContext("2d");
  for (const [y, row] of maps.resampled.entries()) {
    for (let x = 0; x < side; x += 1) {
      const rejected = maps.rejected?.[y][x] === "1";
      context.fillStyle = rejected ? "rgb(255 45 85 / .7)" : row[x] === "1" ? "rgb(255 176 32 / .6)" : "rgb(0 0 0 / .28)";
      context.fillRect(x, y, 1, 1);
    }
  }
  canvas.dataset.map = "1";
  canvas.hidden = !$("map").checked;
}

function maps() {
  const on = $("map").checked;
  $("legend").hidden = !on;
  for (const canvas of document.querySelectorAll("#sides canvas")) canvas.hidden = !on || !canvas.dataset.map;
}

function verdict({ results: [a, b] }) {
  if (!a || !b) return;
  const [x, y] = [a, b].map(({ stats }) => stats.seconds.total - stats.waited);
  const [fast, slow, times] = x <= y ? ["A", "B", y / x] : ["B", "A", x / y];
  $("verdict").textContent = `${fast} took ${Math.min(x, y).toFixed(2)} s, ${slow} ${Math.max(x, y).toFixed(2)} s: ${times.toFixed(1)} times as fast on the same seed.`;
}

// --- what this browser keeps

function recall(name) {
  try { return JSON.parse(localStorage.getItem(`mulosd-${name}`)) ?? {}; } catch { return {}; }
}
function remember(name, value) {
  try { localStorage.setItem(`mulosd-${name}`, JSON.stringify(value)); } catch { /* private windows keep nothing */ }
}

const opened = new Promise((resolve) => {
  const request = indexedDB.open("mulosd", 1);
  request.onupgradeneeded = () => request.result.createObjectStore("images", { keyPath: "time" });
  request.onsuccess = () => resolve(request.result);
  request.onerror = () => resolve(null);
});

async function stored(mode, work) {
  const database = await opened;
  if (!database) return null;
  return new Promise((resolve) => {
    const transaction = database.transaction("images", mode);
    const request = work(transaction.objectStore("images"));
    transaction.oncomplete = () => resolve(request?.result ?? null);
    transaction.onerror = transaction.onabort = () => resolve(null);
  });
}

async function keep(entry) {
  await stored("readwrite", (store) => store.put(entry));
  const times = await stored("readonly", (store) => store.getAllKeys()) ?? [];
  for (const time of times.slice(0, -KEPT)) await stored("readwrite", (store) => store.delete(time));
}

async function history() {
  const entries = (await stored("readonly", (store) => store.getAll()) ?? []).reverse();
  $("empty").hidden = entries.length > 0;
  $("clear").hidden = entries.length === 0;
  for (const image of document.querySelectorAll("#history img")) URL.revokeObjectURL(image.src);
  $("history").replaceChildren(...entries.map((entry) => {
    const button = make("button", "", { type: "button" });
    const thumbs = make("span", "", { class: "thumbs" });
    for (const { blob } of entry.results) {
      const image = make("img", "", { alt: "" });
      image.src = URL.createObjectURL(blob);
      thumbs.append(image);
    }
    const names = entry.results.map(({ decoder }) => decoder.split(":")[0]).join(" | ");
    button.append(thumbs, make("span", entry.prompt, { class: "line" }), make("span", `${names}, seed ${entry.seed}`, { class: "soft" }));
    button.addEventListener("click", () => again(entry));
    const item = make("li");
    item.append(button);
    return item;
  }));
}

function again(entry) {
  if (state.running) return;
  show(entry);
  for (const result of entry.results) side(result, "").finish(result, entry);
  verdict(entry);
  $("prompt").value = entry.prompt;
  if (state.models.has(entry.family)) { $("family").value = entry.family; choose(); $("size").value = entry.size; }
  $("seed").value = entry.seed;
  $("results").focus();
}

// --- wiring

$("form").addEventListener("submit", (event) => { event.preventDefault(); draw(); });
$("stop").addEventListener("click", stop);
$("family").addEventListener("change", choose);
$("compare").addEventListener("change", () => { $("b").disabled = !$("compare").checked; });
$("map").addEventListener("change", maps);
$("clear").addEventListener("click", async () => { await stored("readwrite", (store) => store.clear()); await history(); });
$("theme").addEventListener("click", () => {
  const root = document.documentElement;
  const dark = root.dataset.theme ? root.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
  root.dataset.theme = dark ? "light" : "dark";
  remember("theme", root.dataset.theme);
});
document.addEventListener("keydown", (event) => {
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) { event.preventDefault(); $("form").requestSubmit(); }
  if (event.key === "Escape") stop();
  if (event.key === "m" && !event.target.matches("input:not([type=checkbox]), textarea, select")) $("map").click();
});
if (typeof recall("theme") === "string") document.documentElement.dataset.theme = recall("theme");
connect();
history();
