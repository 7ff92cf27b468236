// Child processes of a case: started, watched line by line, and ended by their own handle only.
import { fork, spawn } from 'node:child_process';

const alive = new Set();
// A case that is cut short must not leave servers behind.
process.on('exit', () => alive.forEach(child => child.kill('SIGKILL')));

// Loopback is never reached through a proxy that the machine may have configured.
const surroundings = { NO_PROXY: 'localhost,127.0.0.1', no_proxy: 'localhost,127.0.0.1' };

/** Starts a program. Its output is kept, so that a failure can show it. */
export function start(name, command, args, { env = {}, cwd } = {}) {
  const options = { env: { ...process.env, ...surroundings, ...env }, cwd, stdio: ['pipe', 'pipe', 'pipe'] };
  return new Child(name, spawn(command, args, options));
}

/** Starts a JavaScript module with a message channel, on the Node binary given. */
export function startModule(name, execPath, file, { env = {} } = {}) {
  const options = { execPath, execArgv: [], env: { ...process.env, ...surroundings, ...env }, silent: true };
  return new Child(name, fork(file, options));
}

class Child {
  #child;
  #lines = [];
  #watchers = new Set();

  constructor(name, child) {
    this.name = name;
    this.#child = child;
    alive.add(child);
    this.ended = new Promise(resolve => {
      child.once('error', error => this.#end(resolve, `could not start: ${error.message}`));
      // `close`, not `exit`: by then the last lines have been read.
      child.once('close', (code, signal) => this.#end(resolve, `ended with ${signal ?? `status ${code}`}`));
    });
    // A program that is gone is noticed by its exit; a write that meets a closed pipe adds nothing.
    child.stdin?.on('error', () => {});
    for (const stream of [child.stdout, child.stderr]) this.#read(stream);
  }

  #end(resolve, reason) {
    alive.delete(this.#child);
    this.reason ??= reason;
    for (const watcher of [...this.#watchers]) watcher();
    resolve(this.reason);
  }

  #read(stream) {
    let rest = '';
    stream.setEncoding('utf8').on('data', text => {
      const parts = (rest + text).split('\n');
      rest = parts.pop();
      this.#lines.push(...parts);
      for (const watcher of [...this.#watchers]) watcher();
    });
  }

  /** Calls `look` with every output line, those already printed included. */
  each(look) {
    let next = 0;
    const watcher = () => {
      while (next < this.#lines.length) look(this.#lines[next++]);
    };
    this.#watchers.add(watcher);
    watcher();
  }

  /** What `pick` makes of the first output line it makes anything of. Rejects when the program ends first. */
  line(pick) {
    return new Promise((resolve, reject) => {
      let next = 0;
      const look = () => {
        while (next < this.#lines.length) {
          const found = pick(this.#lines[next++]);
          if (found) return finish(resolve, found);
        }
        if (this.reason) finish(reject, new Error(`${this.name} ${this.reason}\n${this.output()}`));
      };
      const finish = (settle, value) => {
        this.#watchers.delete(look);
        settle(value);
      };
      this.#watchers.add(look);
      look();
    });
  }

  /** Sends one JSON value as a line on standard input. */
  write(value) {
    this.#child.stdin.write(`${JSON.stringify(value)}\n`);
  }

  /** Asks a module started with `startModule`; it answers every message once, in order. */
  ask(message) {
    return Promise.race([
      new Promise(resolve => {
        this.#child.once('message', resolve);
        if (message) this.#child.send(message);
      }),
      this.ended.then(reason => Promise.reject(new Error(`${this.name} ${reason}\n${this.output()}`))),
    ]);
  }

  /** The last part of what it printed. */
  output() {
    return this.#lines.slice(-40).map(line => `  ${this.name}| ${line}`).join('\n');
  }

  /** Whether any line it printed carries this text. */
  printed(text) {
    return this.#lines.some(line => line.includes(text));
  }

  /** Asks it to end, insists after five seconds, and says how it ended. */
  async stop() {
    if (this.reason) return this.reason;
    this.#child.kill('SIGTERM');
    const insist = setTimeout(() => this.#child.kill('SIGKILL'), 5000);
    const reason = await this.ended;
    clearTimeout(insist);
    return reason;
  }
}
