// Does one job, in Chromium: runs each model on its images, then times all of them in turns.
//
//     node run.mjs JOB.json
//
// Jobs and results are those of converters/runtimes/worker.py. Each model has a page of its own, so that one that
// crashes is reported and the others go on. A sample of a short run is the mean of several.

import { readFile, rename, writeFile } from "node:fs/promises";
import { createRequire } from "node:module";
import { launch, UserError } from "./browser.mjs";
import { serve } from "./serve.mjs";
import { repeats, warmupRepeats } from "./src/measure.js";

const LITERT = createRequire(import.meta.url)("./node_modules/@litertjs/core/package.json").version;

async function main() {
  const job = JSON.parse(await readFile(process.argv[2], "utf8"));
  if (job.threads !== 1) throw new UserError(`the browser runtime runs on one thread, not ${job.threads}`);
  if (job.clock !== "wall") throw new UserError("a browser has no clock of processor time");
  const turns = job.rounds === 0 ? 0 : job.warmup + job.rounds;
  const announce = announcer(job.tasks.length * (1 + turns));
  const extra = new Map(job.tasks.flatMap(({ model, images }, n) => [[`${n}.model`, model], [`${n}.images`, images]]));
  const browser = await launch();
  let server;
  try {
    server = await serve({ extra });
    const results = [];
    const models = [];
    for (const [number, task] of job.tasks.entries()) {
      announce(number);
      const model = new Model(number);
      try {
        await model.open(browser, server.url);
        const outputs = await model.outputs(task.count);
        await writeFile(task.outputs, outputs.bytes);
        results.push({ refused: null, values: outputs.values, milliseconds: [] });
        models.push(model);
      } catch (error) {
        await model.close();
        results.push({ refused: refusal(error), values: 0, milliseconds: [] });
      }
    }
    for (let turn = 0; turn < turns; turn++) {
      for (const model of models) {
        announce(model.number);
        const milliseconds = await model.time(turn < job.warmup);
        if (turn >= job.warmup) results[model.number].milliseconds.push(milliseconds);
      }
    }
    const version = `LiteRT.js ${LITERT}, Chromium ${browser.version()}`;
    await writeFile(`${job.result}.tmp`, JSON.stringify({ version, tasks: results }));
    await rename(`${job.result}.tmp`, job.result);
  } finally {
    server?.close();
    await browser.close();
  }
}

/** One task's model, in a page of its own. */
class Model {
  #context;
  #page;
  #crash;
  #run_ms;

  constructor(number) {
    this.number = number;
  }

  async open(browser, url) {
    this.#context = await browser.newContext(); // a context has processes of its own
    this.#page = await this.#context.newPage();
    this.#crash = new Promise((_, reject) => {
      const crashed = () => reject(new Error("it crashes the browser's page"));
      this.#page.on("crash", crashed).on("close", crashed);
    });
    this.#crash.catch(() => {});
    await this.#page.goto(`${url}job.html`);
    await this.#do((number) => globalThis.job.open(number), this.number);
  }

  /** Run all images: {values: of one image, bytes: of all of them, float32}. */
  async outputs(count) {
    const { values, base64 } = await this.#do((images) => globalThis.job.outputs(images), count);
    this.#run_ms = await this.#do((turns) => globalThis.job.time(turns), 1);
    return { values, bytes: Buffer.from(base64, "base64") };
  }

  /** Milliseconds of one run. */
  async time(warmup) {
    const turns = warmup ? warmupRepeats(this.#run_ms) : repeats(this.#run_ms);
    this.#run_ms = await this.#do((count) => globalThis.job.time(count), turns);
    return this.#run_ms;
  }

  async close() {
    await this.#context?.close();
  }

  #do(call, parameter) {
    return Promise.race([this.#page.evaluate(call, parameter), this.#crash]);
  }
}

/** Each step on a line, as they are begun: the last one before a crash says where. */
function announcer(total) {
  let step = 0;
  return (task) => process.stdout.write(`${JSON.stringify({ step: step++, of: total, task })}\n`);
}

/** The first line of why, without where playwright and the page put it. */
function refusal(error) {
  return error.message.replace(/^(page\.evaluate: )?(Error: )*/, "").split("\n")[0];
}

// Asked to end, it ends at once, and takes Chromium along.
for (const signal of ["SIGTERM", "SIGINT", "SIGHUP"]) process.on(signal, () => process.exit(3));
try {
  await main();
} catch (error) {
  console.error(error.message.split("\n")[0]);
  process.exitCode = error instanceof UserError ? 2 : 3;
}
