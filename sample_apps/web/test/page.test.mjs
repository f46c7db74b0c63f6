// The page in Chromium: an image in, the right class out; every mistake one message, nothing on the console.

import assert from "node:assert/strict";
import { mkdirSync, readFileSync } from "node:fs";
import { join } from "node:path";
import { after, afterEach, before, beforeEach, test } from "node:test";
import { launch } from "../browser.mjs";
import { serve } from "../serve.mjs";
import { boxes, BROKEN, DETECTOR, expected, FILES, image, largest, model, patched, RUN, SCREENS, SQUARES, TOLD, write } from "./support.mjs";

const WAIT_MS = 30_000;
let browser;
let server;
let page;
let complaints;
let requested;

before(async () => {
  mkdirSync(SCREENS, { recursive: true });
  server = await serve({ run: RUN });
  browser = await launch();
});

after(async () => {
  await browser?.close();
  server?.close();
});

beforeEach(async () => {
  page = await browser.newPage();
  page.setDefaultTimeout(WAIT_MS);
  complaints = [];
  requested = new Set();
  page.on("console", (message) => complaints.push(`${message.type()}: ${message.text()}`));
  page.on("pageerror", (error) => complaints.push(`uncaught: ${error.message}`));
  page.context().on("request", (request) => requested.add(new URL(request.url()).origin));
  await page.goto(server.url);
  await page.getByRole("radio", { name: FILES[0] }).waitFor();
});

afterEach(async () => {
  await page.close();
  assert.deepEqual(complaints, []);
  const elsewhere = [...requested].filter((origin) => origin !== new URL(server.url).origin && origin !== "null");
  assert.deepEqual(elsewhere, []);
});

const give = (what, path) => page.locator(`#${what}-file`).setInputFiles(path);
const pick = (name) => page.getByRole("radio", { name }).check();
const measured = () => page.locator("#facts").waitFor();

/** The classes shown: [{name, probability}]. */
async function shown() {
  return page.locator("#classes li").evaluateAll((items) =>
    items.map((item) => ({
      name: item.querySelector(".name").textContent,
      probability: parseFloat(item.querySelector(".share").textContent) / 100,
    })),
  );
}

function softmax(values) {
  const shares = values.map((value) => Math.exp(value - Math.max(...values)));
  const sum = shares.reduce((a, b) => a + b, 0);
  return shares.map((share) => share / sum);
}

test("a detector's boxes are drawn on what it sees", async () => {
  await give("image", SQUARES);
  await give("model", DETECTOR);
  await measured();
  const found = await shown();
  assert.deepEqual(found.map(({ name }) => name), boxes.found.map(({ label }) => boxes.labels[label]));
  found.forEach(({ probability }, place) => assert.ok(Math.abs(probability - boxes.found[place].score) < 6e-3));
  assert.match(await page.locator("#model-note").textContent(), /boxes of 2 classes/);
  assert.match(await page.locator("#seen").getAttribute("aria-label"), /with \d box/);
  // The line of the likeliest box is in its class's colour.
  const [left, top] = boxes.found[0].box.map(Math.round);
  const pixel = await page.locator("#seen").evaluate(
    (canvas, [x, y]) => [...canvas.getContext("2d").getImageData(x, y, 1, 1).data],
    [Math.min(left + 4, 63), Math.min(top, 63)],
  );
  assert.ok(Math.max(...pixel.slice(0, 3)) - Math.min(...pixel.slice(0, 3)) > 60, `${pixel} is a colour`);
  await page.screenshot({ path: join(SCREENS, "boxes.png"), fullPage: true });
});

for (const file of FILES) {
  test(`${file} reads a digit as LiteRT in Python does`, async () => {
    const digit = expected[1];
    await give("image", image(digit));
    await pick(file);
    await measured();
    const [first, ...others] = await shown();
    assert.equal(first.name, `digit ${digit.label}`);
    assert.equal(largest(digit.values[file]), digit.label);
    assert.ok(Math.abs(first.probability - Math.max(...softmax(digit.values[file]))) < 6e-4);
    assert.equal(others.length, 4);
    assert.ok(others.every(({ probability }) => probability <= first.probability));
    assert.match(await page.locator("#time").textContent(), /^[\d.]+ ms$/);
    assert.notEqual(parseFloat(await page.locator("#time").textContent()), 0);
    const bytes = readFileSync(model(file)).length.toLocaleString("en");
    assert.equal(await page.locator("#bytes").textContent(), `${bytes} bytes`);
    assert.match(
      await page.locator("#conditions").textContent(),
      /median of 20 .*LiteRT\.js 2\.5\.3, WebAssembly.*, 1 thread, .*\d+\./,
    );
  });
}

test("another image and another file give their own answer", async () => {
  await give("model", model(FILES[1]));
  for (const digit of expected) {
    await give("image", image(digit));
    await page.locator("#classes li .name", { hasText: `digit ${largest(digit.values[FILES[1]])}` }).first().waitFor();
    await measured();
    assert.equal((await shown())[0].name, `digit ${largest(digit.values[FILES[1]])}`);
  }
});

test("a file that does not say how to normalise is not guessed", async () => {
  const digit = expected[2];
  const silent = patched("silent.tflite", FILES[0], '"range":[0.0,255.0],"mean":[0.5,0.5,0.5]', '"range":null');
  await give("image", image(digit));
  await give("model", silent);
  await page.getByText("does not say how its pixels are normalised").waitFor();
  assert.equal(await page.locator("#classes").isVisible(), false);
  assert.equal(await page.locator("#status").textContent(), "Choose how the pixels are normalised.");
  await page.getByRole("radio", { name: "0 to 255" }).check();
  await measured();
  assert.equal((await shown())[0].name, `digit ${largest(digit.values[FILES[0]])}`);
});

test("a file that says how to normalise is given what it asks for", async () => {
  await give("image", image(expected[1]));
  await give("model", TOLD);
  await measured();
  assert.equal(await page.locator("#normalization").isVisible(), false);
  assert.match(await page.locator("#model-note").textContent(), /it says how to normalise pixels/);
  assert.equal((await shown())[0].name, `digit ${expected[1].label}`);
});

test("class names that cannot be read are not shown", async () => {
  const nameless = patched("nameless.tflite", FILES[0], '"labels":["digit 0"', '"labels":[0,"digit"');
  await give("image", image(expected[0]));
  await give("model", nameless);
  await measured();
  assert.equal((await shown())[0].name, `class ${largest(expected[0].values[FILES[0]])}`);
});

for (const { name, path, onPage } of BROKEN) {
  test(`${name} is refused in one message, and the page goes on`, async () => {
    await give("image", image(expected[0]));
    await give("model", path);
    await page.getByRole("alert").waitFor();
    assert.match(await page.getByRole("alert").textContent(), onPage);
    await pick(FILES[1]);
    await measured();
    assert.equal(await page.getByRole("alert").isVisible(), false);
  });
}

test("what is not an image is refused, and its result is gone", async () => {
  await give("model", model(FILES[0]));
  await give("image", image(expected[0]));
  await measured();
  await give("image", write("words.png", "not an image"));
  await page.getByRole("alert").waitFor();
  assert.match(await page.getByRole("alert").textContent(), /not an image/);
  assert.equal(await page.locator("#classes").isVisible(), false);
});

test("a dropped file is taken", async () => {
  await pick(FILES[0]);
  const bytes = [...readFileSync(image(expected[3]))];
  const transfer = await page.evaluateHandle((content) => {
    const files = new DataTransfer();
    files.items.add(new File([new Uint8Array(content)], "digit.png", { type: "image/png" }));
    return files;
  }, bytes);
  await page.locator("#image-drop").dispatchEvent("drop", { dataTransfer: transfer });
  await measured();
  assert.equal((await shown())[0].name, `digit ${largest(expected[3].values[FILES[0]])}`);
});

test("the keyboard reaches everything", async () => {
  await give("image", image(expected[0]));
  const reached = [];
  for (let presses = 0; presses < 4; presses++) {
    await page.keyboard.press("Tab");
    reached.push(await page.evaluate(() => document.activeElement.id || document.activeElement.name));
  }
  assert.deepEqual(reached, ["image-file", "run-file", "model-file", "compare-start"]);
  await page.locator("[name=run-file]").first().focus();
  await page.keyboard.press("Space");
  await measured();
});

test("all files are compared in turns", async () => {
  await give("image", image(expected[0]));
  await page.getByRole("button", { name: "Compare all files" }).click();
  await page.getByRole("button", { name: "Compare all files", disabled: false }).waitFor();
  await page.locator("#compare-status", { hasText: /^$/ }).waitFor({ state: "attached" });
  const rows = await page.locator("#compared tr").allInnerTexts();
  assert.equal(rows.length, FILES.length);
  for (const [index, row] of rows.entries()) {
    assert.ok(row.includes(FILES[index]));
    assert.ok(row.includes(`digit ${largest(expected[0].values[FILES[index]])}`));
    assert.match(row, /[\d.]+ ms/);
  }
});

for (const width of [1280, 390]) {
  for (const colorScheme of ["light", "dark"]) {
    test(`it fits ${width} pixels, ${colorScheme}`, async () => {
      await page.setViewportSize({ width, height: 900 });
      await page.emulateMedia({ colorScheme });
      await give("image", image(expected[0]));
      await pick(FILES[1]);
      await measured();
      await page.getByRole("button", { name: "Compare all files" }).click();
      await page.getByRole("button", { name: "Compare all files", disabled: false }).waitFor();
      await page.screenshot({ path: join(SCREENS, `${width}-${colorScheme}.png`), fullPage: true });
      const overflow = await page.evaluate(() => document.documentElement.scrollWidth - innerWidth);
      assert.ok(overflow <= 0, `${overflow} pixels too wide`);
    });
  }
}
