// Visits the status pages of a live cluster in Chromium and says what is wrong with them.
//
// `node visit.js URL`, started by tests/tests/pages.rs: a line "please …" on standard output asks it to do something to
// the cluster, and it answers with a line when that is done. Ends with 1 if something was wrong. Pictures of the pages go
// into the folder that ESSAIM_SCREENSHOTS names, if it does.

import { createInterface } from "node:readline";
import { readFileSync } from "node:fs";
import { createRequire } from "node:module";
import { chromium } from "playwright-core";

const [base] = process.argv.slice(2);
const pictures = process.env.ESSAIM_SCREENSHOTS;
const AXE = readFileSync(createRequire(import.meta.url).resolve("axe-core/axe.min.js"), "utf8");
const STUB = new URL("../../web/src/charts.js", import.meta.url);
const SIZES = { desktop: { width: 1280, height: 900 }, phone: { width: 360, height: 740 } };
const SCHEMES = ["light", "dark"];
/** What something may take that happens within a second or two. */
const SOON = 20_000;

const faults = [];
const fault = (where, what) => {
  faults.push(what);
  console.log(`${where}: ${what}`);
};
const check = (holds, where, what) => holds || fault(where, what);

const answers = createInterface({ input: process.stdin })[Symbol.asyncIterator]();
async function please(what) {
  console.log(`please ${what}`);
  await answers.next();
}

const ask = async (path) => (await fetch(`${base}${path}`)).json();

/** Opens a page in a context of its own whose errors and requests are watched. */
async function open(browser, path, { size = "desktop", scheme = "light", routes = {} } = {}) {
  const where = `${path} (${scheme}, ${size})`;
  const context = await browser.newContext({ viewport: SIZES[size], colorScheme: scheme, reducedMotion: "reduce" });
  for (const [pattern, body] of Object.entries(routes)) {
    await context.route(pattern, (route) => route.fulfill({ body, contentType: "text/javascript" }));
  }
  const page = await context.newPage();
  page.setDefaultTimeout(SOON);
  page.on("pageerror", (error) => fault(where, `an exception: ${error.stack}`));
  page.on("dialog", (dialog) => fault(where, `a dialog: ${dialog.message()}`));
  page.on("console", (message) => {
    // While the master is away the browser itself notes each request that fails.
    const away = page.masterIsAway && message.text().startsWith("Failed to load resource");
    if (["error", "warning"].includes(message.type()) && !away) fault(where, `the console says: ${message.text()}`);
  });
  page.on("request", (request) => {
    check(request.url().startsWith(`${base}/`), where, `a request to another host: ${request.url()}`);
  });
  const response = await page.goto(`${base}${path}`);
  check(response.status() === 200, where, `the master answered ${response.status()}`);
  await page.locator("#connection .live").waitFor();
  await page.locator("main h1").waitFor();
  return Object.assign(page, { where });
}

/** What every page must be, however it is looked at. */
async function examine(page) {
  const { where } = page;
  await page.evaluate(AXE);
  const { violations } = await page.evaluate(() => globalThis.axe.run({ runOnly: ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa"] }));
  for (const { id, help, nodes } of violations) fault(where, `axe, ${id}: ${help}: ${nodes.map((node) => node.html).slice(0, 3).join(" ")}`);
  const [width, room] = await page.evaluate(() => [document.documentElement.scrollWidth, innerWidth]);
  check(width <= room, where, `it is ${width} px wide on a screen of ${room}`);
  check((await page.locator("main img, main script").count()) === 0, where, "there is markup that is not the page's own");
}

/** Every link and control can be reached by the Tab key. */
async function tabThrough(page) {
  const unreached = await page.evaluateHandle(() => {
    const all = [...document.querySelectorAll("a[href], button, input, select, summary, [tabindex='0']")];
    return new Set(all.filter((element) => element.checkVisibility()));
  });
  const count = await unreached.evaluate((set) => set.size);
  // Some more: the pages grow while they are visited.
  for (let step = 0; step < count + 40; step += 1) {
    await page.keyboard.press("Tab");
    const left = await unreached.evaluate((set) => {
      set.delete(document.activeElement);
      // What an update took away cannot be reached.
      for (const element of set) if (!element.isConnected) set.delete(element);
      return set.size;
    });
    if (left === 0) return;
  }
  const left = await unreached.evaluate((set) => [...set].map((element) => element.outerHTML.slice(0, 100)));
  fault(page.where, `not reached by keyboard: ${left.join(" ")}`);
}

/** Waits until `holds` is true in the page. */
async function until(page, what, holds, argument) {
  await page.waitForFunction(holds, argument, { timeout: SOON }).catch(() => fault(page.where, `waited in vain for ${what}`));
}

const textOf = (page) => page.locator("main").innerText();

async function main(browser) {
  const { jobs } = await ask("/api/v1/jobs");
  const { workers } = await ask("/api/v1/workers");
  const job = (name) => `/jobs/${jobs.find((job) => job.name === name).id}`;
  const hostile = jobs.find(({ name }) => name.startsWith("<img"));
  const stream = job("toots-per-window");
  const pages = { overview: "/", jobs: "/jobs", stream, batch: job("toots-by-language"), failed: job("copy-of-broken-toots"), hostile: `/jobs/${hostile.id}`, workers: "/workers", worker: `/workers/${workers[0].id}` };

  for (const [name, path] of Object.entries(pages)) {
    for (const size of Object.keys(SIZES)) {
      for (const scheme of SCHEMES) {
        const page = await open(browser, path, { size, scheme });
        if (name === "stream") await page.locator(".plot canvas").nth(5).waitFor();
        if (name === "stream" || name === "batch") await page.locator(".plan .edge").first().waitFor();
        await examine(page);
        if (size === "desktop" && scheme === "light") await tabThrough(page);
        await page.context().close();
      }
    }
  }

  await names(browser, hostile);
  await words(browser, stream, job);
  await filters(browser);
  await withoutCharts(browser, stream);
  if (pictures) await photograph(browser, pages);
  await updates(browser, stream);
}

/** What users wrote is shown as they wrote it. */
async function names(browser, hostile) {
  const page = await open(browser, `/jobs/${hostile.id}`);
  check((await page.locator("h1").innerText()).startsWith(hostile.name), page.where, "the job's name is not shown as it is");
  check((await page.title()).startsWith(hostile.name), page.where, "the title is not the job's name");
  await page.context().close();
}

/** The pages say in words what is the matter. */
async function words(browser, stream, job) {
  let page = await open(browser, stream);
  let text = await textOf(page);
  for (const said of [/Running for .* Epoch [\d,]+ took .* rows\/s come in\./, /Watermark \d/, /Median/, /[\d,]+ rows/, /UTC|stage 0/]) {
    check(said.test(text), page.where, `it does not say ${said}`);
  }
  const stamps = await page.locator("time").evaluateAll((all) => all.map((time) => time.title));
  check(stamps.length > 0 && stamps.every((title) => title.includes("UTC")), page.where, "a time without its UTC");
  check((await page.locator("rect.succeeded").count()) > 0, page.where, "no task attempt is on the timeline");
  await page.context().close();

  page = await open(browser, job("copy-of-broken-toots"));
  text = await textOf(page);
  check(/Failed after /.test(text), page.where, "it does not say that it failed");
  check(/\[0\] offset 3/.test(text), page.where, "it does not say which record was broken");
  await page.context().close();
}

/** The jobs are filtered by what the address says, and the form makes that address. */
async function filters(browser) {
  const page = await open(browser, "/jobs");
  await page.getByLabel("State").selectOption("failed");
  await page.getByRole("button", { name: "Filter" }).press("Enter");
  await page.waitForURL(/state=failed/);
  await page.locator("tbody tr").first().waitFor();
  const states = await page.locator("tbody .state").allInnerTexts();
  check(states.length > 0 && states.every((state) => state === "failed"), page.where, `filtered by failed, there are ${states}`);
  check((await page.getByLabel("State").inputValue()) === "failed", page.where, "the form forgot the filter");
  await page.context().close();
}

/** A build without the bundle shows the same figures and says why there are no charts. */
async function withoutCharts(browser, stream) {
  const page = await open(browser, stream, { routes: { "**/assets/charts.js": readFileSync(STUB, "utf8") } });
  await page.getByText("This build has no charts").waitFor();
  check((await page.locator("canvas").count()) === 0, page.where, "there is a chart all the same");
  await examine(page);
  await page.context().close();
}

/** What happens is seen without a reload; what breaks the connection is seen too. */
async function updates(browser, stream) {
  const overview = await open(browser, "/");
  const job = await open(browser, stream);
  for (const page of [overview, job]) await page.evaluate(() => (globalThis.neverReloaded = true));

  const epoch = () => Number(/Epoch ([\d,]+)/.exec(document.querySelector(".sentence").innerText)?.[1].replaceAll(",", ""));
  const before = await job.evaluate(epoch);
  await until(job, "the next epochs", (before) => Number(/Epoch ([\d,]+)/.exec(document.querySelector(".sentence").innerText)?.[1].replaceAll(",", "")) > before + 3, before);

  await please("submit a job");
  await until(overview, "the new job", () => document.querySelector("main").innerText.includes("submitted-meanwhile"));

  await please("kill a worker");
  await until(overview, "the lost worker, in words", () => /worker.*(lost|silent)/i.test(document.querySelector(".problems").innerText));
  await examine(overview);

  for (const page of [overview, job]) page.masterIsAway = true;
  await please("kill the master");
  for (const page of [overview, job]) {
    await until(page, "a count of the seconds without connection", () => /Not connected for [2-9] s/.test(document.querySelector("#connection").innerText));
    await examine(page);
  }
  await please("start the master");
  for (const page of [overview, job]) {
    await until(page, "the connection to come back", () => document.querySelector("#connection .live"));
    page.masterIsAway = false;
  }
  const last = await job.evaluate(epoch);
  await until(job, "epochs of the new master", (last) => Number(/Epoch ([\d,]+)/.exec(document.querySelector(".sentence").innerText)?.[1].replaceAll(",", "")) > last, last);
  for (const page of [overview, job]) check(await page.evaluate(() => globalThis.neverReloaded), page.where, "the page was reloaded");
}

/** Pictures for docs/status.md. */
async function photograph(browser, pages) {
  const shots = [["overview", "desktop", "light"], ["jobs", "desktop", "light"], ["stream", "desktop", "light"], ["stream", "desktop", "dark"], ["batch", "desktop", "light"], ["workers", "desktop", "dark"], ["worker", "desktop", "light"], ["overview", "phone", "dark"], ["stream", "phone", "light"]];
  for (const [name, size, scheme] of shots) {
    const page = await open(browser, pages[name], { size, scheme });
    if (name === "stream") await page.locator(".plot canvas").nth(5).waitFor();
    await page.screenshot({ path: `${pictures}/${name}-${size}-${scheme}.png`, fullPage: true });
    await page.context().close();
  }
}

const executablePath = process.env.ESSAIM_CHROMIUM ?? "/usr/bin/chromium";
const args = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update", "--disable-sync", "--no-first-run"];
let browser;
try {
  browser = await chromium.launch({ executablePath, args });
} catch (error) {
  console.log(`Chromium (${executablePath}) does not start; scripts/setup installs it, ESSAIM_CHROMIUM says where it is otherwise: ${error.message}`);
  process.exit(1);
}
try {
  await main(browser);
} catch (error) {
  fault("the visit", error.stack);
}
await browser.close();
process.exit(faults.length ? 1 : 0);
