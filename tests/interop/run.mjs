// Interop: `node tests/interop/run.mjs CASE…|all|list [--direct]`. Exit status 0 when every case passes.
//
// POSTERN_BIN   the built gateway (not needed with --direct: the client then talks to the upstream itself)
// WORK_DIR      where the cases keep their files; a new temporary directory when absent, removed afterwards
// SCREENSHOTS   a directory for pictures of the pages; none are taken when absent
// CHROMIUM      the browser, /usr/bin/chromium when absent
import { spawnSync } from 'node:child_process';
import { mkdir, mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join, resolve } from 'node:path';
import { fileURLToPath } from 'node:url';

/** A case that needs longer says so. */
const CASE_SECONDS = 50;
const STOP_SECONDS = 8;

const direct = process.argv.includes('--direct');
const names = process.argv.slice(2).filter(argument => argument !== '--direct');
if (names.length === 0) stop('usage: run.mjs CASE…|all|list [--direct]');

const setup = spawnSync(fileURLToPath(new URL('setup.sh', import.meta.url)), { stdio: ['ignore', 2, 2] });
if (setup.status !== 0) stop(`setup.sh failed: ${setup.error?.message ?? `status ${setup.status}`}`);
const files = await Promise.all([import('./case.mjs'), import('./pages.mjs'), import('./conformance/cases.mjs'), import('./identity.mjs'), import('./life.mjs'), import('./upstream.mjs'), import('./lists.mjs'), import('./step-up.mjs')]);
const cases = files.flatMap(file => file.cases);

if (names[0] === 'list') {
  cases.forEach(({ name }) => console.log(name));
  process.exit(0);
}
const chosen = names[0] === 'all' ? cases : names.map(name => cases.find(each => each.name === name));
if (chosen.includes(undefined)) stop(`no such case: ${names[chosen.indexOf(undefined)]}; try list`);
const binary = direct ? undefined : process.env.POSTERN_BIN && resolve(process.env.POSTERN_BIN);
if (!direct && !binary) stop('POSTERN_BIN is not set');

let ending = false;
const interrupted = new Promise((_, reject) => {
  for (const signal of ['SIGINT', 'SIGTERM']) {
    process.once(signal, () => {
      ending = true;
      reject(new Error(`ended by ${signal}`));
    });
  }
});
interrupted.catch(() => {});
const given = process.env.WORK_DIR && resolve(process.env.WORK_DIR);
const work = given ?? (await mkdtemp(join(tmpdir(), 'interop-')));

let failures = 0;
for (const each of chosen) {
  if (!(await passes(each))) failures++;
  if (ending) break;
}
if (!given) await rm(work, { recursive: true, force: true });
process.exit(failures === 0 ? 0 : 1);

/** Runs a case within its time, stops everything it started, and prints how it went. */
async function passes(each) {
  const { seconds = CASE_SECONDS } = each;
  const began = Date.now();
  const cleanup = [];
  const lines = [];
  let timer;
  const late = new Promise((_, reject) => {
    timer = setTimeout(() => reject(new Error(`not done after ${seconds} seconds`)), seconds * 1000);
  });
  let outcome;
  try {
    await mkdir(work, { recursive: true });
    const directory = await mkdtemp(join(work, `${each.name}-`));
    const screenshots = process.env.SCREENSHOTS && join(resolve(process.env.SCREENSHOTS), each.name);
    const options = { binary, directory, screenshots, defer: end => cleanup.unshift(end), say: line => lines.push(line) };
    const ran = await Promise.race([each.run(options), late, interrupted]);
    outcome = ran ? 'pass' : 'skip (nothing to run without the gateway, or without client documents)';
  } catch (error) {
    outcome = `FAIL: ${error.stack ?? error}`;
    // Some errors carry the reason one level down.
    if (error.cause) outcome += `\ncaused by ${error.cause.stack ?? error.cause}`;
  } finally {
    clearTimeout(timer);
    for (const end of cleanup) await stopped(end).catch(error => lines.push(`stopping: ${error.message}`));
  }
  lines.forEach(line => console.log(`  ${line}`));
  console.log(`${each.name}: ${outcome} (${((Date.now() - began) / 1000).toFixed(1)} s)`);
  return !outcome.startsWith('FAIL');
}

/** Stopping has its time too; what is left then goes with this process. */
function stopped(end) {
  let timer;
  const late = new Promise((_, reject) => {
    timer = setTimeout(() => reject(new Error('still not stopped')), STOP_SECONDS * 1000);
  });
  return Promise.race([Promise.resolve().then(end), late]).finally(() => clearTimeout(timer));
}

function stop(message) {
  console.error(message);
  process.exit(2);
}
