// Finds and starts Chromium. As a program, only says which it is, or what to install.

import { accessSync, constants } from "node:fs";
import { delimiter, join } from "node:path";
import { fileURLToPath } from "node:url";
import { chromium } from "playwright-core";

const NAMES = ["chromium", "chromium-browser", "google-chrome", "google-chrome-stable"];
const ELSEWHERE = ["/Applications/Chromium.app/Contents/MacOS/Chromium"];
const FLAGS = [
  "--disable-gpu",
  "--disable-quic",
  "--no-first-run",
  "--disable-background-networking",
  "--disable-component-update",
  "--disable-sync",
];

// Left to the program: closing the pages on a signal would look like a crash to whoever uses them.
const SIGNALS = { handleSIGTERM: false, handleSIGINT: false, handleSIGHUP: false };

/** A mistake that one line explains. */
export class UserError extends Error {}

/** Start Chromium without a window. Throws a UserError where there is none. */
export async function launch() {
  const executablePath = find();
  try {
    return await chromium.launch({ executablePath, args: FLAGS, ...SIGNALS });
  } catch (error) {
    const why = error.message.split("\n")[0].replace(/^browserType\.launch: /, "");
    throw new UserError(`${executablePath} does not start as Chromium: ${why}`);
  }
}

/** The path of Chromium: $CHROMIUM, or the first of its names on the path. */
export function find(environment = process.env) {
  const chosen = environment.CHROMIUM;
  if (chosen) {
    if (runs(chosen)) return chosen;
    throw new UserError(`CHROMIUM is ${chosen}, which is not a program`);
  }
  const folders = (environment.PATH ?? "").split(delimiter).filter(Boolean);
  const places = [...folders.flatMap((folder) => NAMES.map((name) => join(folder, name))), ...ELSEWHERE];
  const found = places.find(runs);
  if (found !== undefined) return found;
  throw new UserError(
    "Chromium is not installed: install it (Debian: apt-get install chromium), or name one with CHROMIUM=PATH",
  );
}

function runs(path) {
  try {
    accessSync(path, constants.X_OK);
    return true;
  } catch {
    return false;
  }
}

if (process.argv[1] === fileURLToPath(import.meta.url)) {
  try {
    console.log(`browser: ${find()}`);
  } catch (error) {
    console.error(error.message);
    process.exitCode = 2;
  }
}
