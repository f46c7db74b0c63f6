// The page: an image and a file in, the classes and the time out. Everything it shows comes through `show...`.

import { Classifier } from "./classifier.js";
import { median, repeats, warmupRepeats } from "./measure.js";
import { decode, NORMALIZATIONS } from "./pixels.js";

const CLASSES_SHOWN = 5;
const SAMPLES = 20;
const COMPARE_ROUNDS = 15;

const element = (id) => document.getElementById(id);
const state = { image: null, classifier: null, loading: new AbortController(), normalization: null, files: [] };
const newest = { image: 0, model: 0, result: 0, comparison: 0 };

accept("image", setImage);
accept("model", (file) => {
  uncheck("run-files");
  return setModel(file.name, async () => new Uint8Array(await file.arrayBuffer()));
});
showNormalizations();
element("compare-start").addEventListener("click", () => attempt(compare));
attempt(listRun);
// A file dropped beside the zones would otherwise replace the page.
for (const name of ["dragover", "drop"]) document.addEventListener(name, (event) => event.preventDefault());

/** Begin something of one kind; returns whether it still is the newest of it. What is not, is not shown. */
function begin(kind) {
  const number = ++newest[kind];
  return () => number === newest[kind];
}

/** Do something that may fail; what fails is one message on the page. */
async function attempt(action) {
  showMessage(null);
  try {
    await action();
  } catch (error) {
    clearResult();
    showMessage(error.message);
  }
}

/** Let a file be picked, or dropped on the whole drop zone. */
function accept(what, use) {
  const [zone, input] = [element(`${what}-drop`), element(`${what}-file`)];
  const take = (files) => files.length > 0 && attempt(() => use(files[0]));
  input.addEventListener("change", () => {
    take([...input.files]);
    input.value = ""; // the same file may be chosen again
  });
  for (const name of ["dragover", "dragleave", "drop"]) {
    zone.addEventListener(name, (event) => {
      event.preventDefault();
      zone.classList.toggle("over", name === "dragover");
      if (name === "drop") take([...event.dataTransfer.files]);
    });
  }
}

async function setImage(file) {
  const current = begin("image");
  begin("comparison");
  state.image = null;
  element("seen").hidden = true;
  element("image-note").textContent = "";
  const image = await decode(file);
  if (!current()) return;
  state.image = image;
  element("image-note").textContent = `${file.name}, ${image.width} × ${image.height} pixels`;
  showSeen();
  await classify();
}

async function setModel(name, read) {
  const current = begin("model");
  begin("result");
  begin("comparison");
  state.loading.abort();
  state.loading = new AbortController();
  const { signal } = state.loading;
  state.classifier = null;
  state.normalization = null;
  clearResult();
  element("normalization").hidden = true;
  element("model-note").textContent = "";
  showStatus(`Loading ${name} …`);
  let classifier;
  try {
    classifier = await Classifier.load(name, await read(), signal);
  } catch (error) {
    if (current()) throw error;
    return;
  }
  if (!current()) return classifier.close();
  state.classifier = classifier;
  showModel(classifier);
  showSeen();
  await classify();
}

/** Run the model on the image, where there are both, and time it. */
async function classify() {
  const current = begin("result");
  const { image, classifier, normalization } = state;
  clearResult();
  const missing = whatIsMissing();
  showStatus(missing ?? "Running …");
  if (missing !== null) return;
  try {
    const shown = classifier.findsBoxes
      ? { boxes: await classifier.find(image, normalization) }
      : { classes: await classifier.classify(image, normalization) };
    if (!current()) return;
    if (shown.boxes) showBoxes(shown.boxes, classifier.labels.length);
    else showClasses(shown.classes);
    showStatus("Measuring …");
    const samples = await measure(classifier);
    if (current()) showFacts(classifier, samples);
  } catch (error) {
    if (current()) throw error;
  }
}

function whatIsMissing() {
  const { image, classifier, normalization } = state;
  if (classifier === null) return image === null ? "Choose a model and an image." : "Choose a model.";
  if (image === null) return "Choose an image.";
  return classifier.saysWhatItTakes || normalization !== null ? null : "Choose how the pixels are normalised.";
}

async function measure({ runtime }) {
  const first_ms = await runtime.time(1);
  const warm_ms = await runtime.time(warmupRepeats(first_ms));
  const samples = [];
  while (samples.length < SAMPLES) samples.push(await runtime.time(repeats(warm_ms)));
  return samples;
}

async function listRun() {
  const response = await fetch("run.json");
  state.files = shortened(response.ok ? ((await response.json()) ?? []) : []);
  element("run-files").hidden = state.files.length === 0;
  element("compare").hidden = state.files.length < 2;
  for (const file of state.files) {
    element("run-files").append(
      choice("run-file", file.name, size(file.bytes), () => setModel(file.name, () => download(file))),
    );
  }
  showStatus(whatIsMissing());
}

/** The files, {path, name, bytes}, the folder that they are all in left out of their names. */
function shortened(files) {
  const folders = new Set(files.map(({ path }) => path.slice(0, path.lastIndexOf("/") + 1)));
  const common = folders.size === 1 ? [...folders][0].length : 0;
  return files.map(({ path, bytes }) => ({ path, bytes, name: path.slice(common) }));
}

async function download({ path, name }) {
  const response = await fetch(`run/${path.split("/").map(encodeURIComponent).join("/")}`);
  if (!response.ok) throw new Error(`${name} is no longer in the run.`);
  return new Uint8Array(await response.arrayBuffer());
}

/** Every file of the run on this image, interleaved. */
async function compare() {
  const current = begin("comparison");
  if (state.image === null) throw new Error("Choose an image first: each file is run on it.");
  const button = element("compare-start");
  button.disabled = true;
  const rows = state.files.map((file) => ({ ...file, samples: [] }));
  try {
    for (const row of rows) {
      if (!current()) break;
      element("compare-status").textContent = `Loading ${row.name} …`;
      await open(row);
      showComparison(rows);
    }
    const running = rows.filter((row) => row.classifier);
    for (let round = 0; round < COMPARE_ROUNDS && current(); round++) {
      element("compare-status").textContent = `Round ${round + 1} of ${COMPARE_ROUNDS}`;
      for (const row of running) {
        row.samples.push(await row.classifier.runtime.time(repeats(row.warm_ms)));
      }
      showComparison(rows);
    }
  } finally {
    if (!current()) element("compare-scroll").hidden = true;
    for (const { classifier } of rows) classifier?.close();
    element("compare-status").textContent = "";
    button.disabled = false;
  }
}

async function open(row) {
  try {
    row.classifier = await Classifier.load(row.name, await download(row));
    if (!row.classifier.saysWhatItTakes && state.normalization === null) {
      throw new Error("It does not say how its pixels are normalised.");
    }
    if (row.classifier.findsBoxes) {
      row.boxes = await row.classifier.find(state.image, state.normalization);
    } else {
      [row.top] = await row.classifier.classify(state.image, state.normalization);
    }
    const first_ms = await row.classifier.runtime.time(1);
    row.warm_ms = await row.classifier.runtime.time(warmupRepeats(first_ms));
  } catch (error) {
    row.classifier?.close();
    row.classifier = null;
    row.refused = error.message;
  }
}

function showNormalizations() {
  for (const [key, normalization] of Object.entries(NORMALIZATIONS)) {
    element("normalization").append(
      choice("normalization", normalization.label, "", () => {
        state.normalization = NORMALIZATIONS[key];
        return classify();
      }),
    );
  }
}

function choice(group, name, detail, chosen) {
  const label = document.createElement("label");
  label.className = "choice";
  const input = document.createElement("input");
  Object.assign(input, { type: "radio", name: group, value: name });
  input.addEventListener("change", () => attempt(chosen));
  label.append(input, text("span", "name", name), text("span", "detail", detail));
  return label;
}

function uncheck(id) {
  for (const input of element(id).querySelectorAll("input")) input.checked = false;
}

function showModel({ name, bytes, width, height, labels, outputs, findsBoxes, takesPixels, saysWhatItTakes }) {
  const named = labels ? `${outputs} classes` : `${outputs} classes without names`;
  const classes = findsBoxes ? `boxes of ${labels.length} classes` : named;
  const says = saysWhatItTakes ? "it says how to normalise pixels" : "it does not say how to normalise pixels";
  const pixels = takesPixels ? "it normalises pixels itself" : says;
  element("model-note").textContent = `${name}: ${size(bytes)}, ${width} × ${height} pixels, ${classes}; ${pixels}`;
  uncheck("normalization");
  element("normalization").hidden = saysWhatItTakes;
}

/** What the model sees: the image cropped and resized; without a model, as large as it is. */
function showSeen() {
  if (state.image === null) return;
  const { data, width, height } = state.classifier?.seen(state.image) ?? state.image;
  const canvas = element("seen");
  Object.assign(canvas, { width, height, hidden: false });
  canvas.getContext("2d").putImageData(new ImageData(data, width, height), 0, 0);
}

/** What was found, drawn onto what the model sees and listed, the likeliest first. */
function showBoxes(found, classes) {
  showSeen();
  const canvas = element("seen");
  const context = canvas.getContext("2d");
  for (const { name, label, score, box } of found) {
    const [left, top, right, bottom] = box;
    context.strokeStyle = context.fillStyle = colour(label, classes);
    context.lineWidth = Math.max(1, canvas.width / 160);
    context.strokeRect(left, top, right - left, bottom - top);
    context.font = `${Math.max(8, Math.round(canvas.width / 28))}px sans-serif`;
    context.fillText(`${name} ${Math.round(100 * score)}`, left + 2, Math.max(top - 2, 8));
  }
  canvas.setAttribute("aria-label", `What the model sees, with ${boxesInWords(found)}`);
  showItems(found.map(({ name, label, score }) => ({ name, probability: score, colour: colour(label, classes) })));
  if (found.length === 0) element("classes").replaceChildren(text("li", "", "No boxes."));
}

const colour = (label, classes) => `hsl(${Math.round((360 * label) / classes)} 90% 60%)`;

/** For instance "3 boxes: 2 cell, 1 platelet". */
function boxesInWords(found) {
  if (!found) return "";
  const counts = new Map();
  for (const { name } of found) counts.set(name, (counts.get(name) ?? 0) + 1);
  const each = [...counts].map(([name, count]) => `${count} ${name}`).join(", ");
  return `${found.length} ${found.length === 1 ? "box" : "boxes"}${each ? `: ${each}` : ""}`;
}

function showClasses(classes) {
  showItems(classes.slice(0, CLASSES_SHOWN));
}

function showItems(shown) {
  const items = shown.map(({ name, probability, colour }) => {
    const item = document.createElement("li");
    const line = text("div", "line", "");
    line.append(text("span", "name", name), text("span", "share", percent(probability)));
    const [track, bar] = [text("div", "track", ""), text("div", "bar", "")];
    bar.style.width = `${100 * probability}%`;
    if (colour) bar.style.background = colour;
    track.append(bar);
    item.append(line, track);
    return item;
  });
  element("classes").replaceChildren(...items);
  element("classes").hidden = false;
}

function showFacts({ bytes, runtime }, samples) {
  const { runtime: library, build, threads } = runtime.details;
  element("time").textContent = milliseconds(median(samples));
  element("bytes").textContent = `${bytes.toLocaleString("en")} bytes`;
  element("conditions").textContent =
    `Time: median of ${samples.length} samples, real time. ${library}, ${build}, ` +
    `${threads} thread${threads === 1 ? "" : "s"}, ${browserName()}.`;
  element("facts").hidden = false;
  showStatus("");
}

function showComparison(rows) {
  element("compare-scroll").hidden = false;
  element("compared").replaceChildren(
    ...rows.map((row) => {
      const line = document.createElement("tr");
      line.append(text("td", "", row.name));
      if (row.refused) {
        const cell = text("td", "refused", row.refused);
        cell.colSpan = 3;
        line.append(cell);
      } else {
        line.append(
          text("td", "", row.top ? `${row.top.name} (${percent(row.top.probability)})` : boxesInWords(row.boxes)),
          text("td", "", row.bytes.toLocaleString("en")),
          text("td", "", row.samples.length ? milliseconds(median(row.samples)) : "…"),
        );
      }
      return line;
    }),
  );
}

function clearResult() {
  for (const id of ["classes", "facts"]) element(id).hidden = true;
  element("conditions").textContent = "";
  showStatus("");
}

function showMessage(message) {
  element("message").textContent = message ?? "";
  element("message").hidden = message === null;
}

function showStatus(status) {
  element("status").textContent = status;
}

function text(tag, className, content) {
  const made = document.createElement(tag);
  if (className) made.className = className;
  made.textContent = content;
  return made;
}

function size(bytes) {
  return bytes < 1e6 ? `${(bytes / 1e3).toFixed(1)} kB` : `${(bytes / 1e6).toFixed(2)} MB`;
}

function milliseconds(value) {
  return `${value < 1 ? value.toFixed(3) : value.toPrecision(value < 100 ? 3 : 4)} ms`;
}

function percent(fraction) {
  return `${(100 * fraction).toFixed(1)} %`;
}

function browserName() {
  const brands = navigator.userAgentData?.brands ?? [];
  const brand = brands.find(({ brand: name }) => !/not/i.test(name)); // one is made up: "Not A;Brand"
  if (brand) return `${brand.brand} ${brand.version}`;
  return /(Firefox|Version|Chrome)\/\d+/.exec(navigator.userAgent)?.[0].replace("/", " ") ?? "an unknown browser";
}
