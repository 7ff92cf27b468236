// The gateway under test: one route to the upstream, one local user, a store of its own.
import { mkdir, readFile, rm, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { start } from './child.mjs';
import { nextLook, withFreePorts } from './ports.mjs';

export const user = { name: 'alice', password: 'pw' };
const PASSWORD_HASH =
  '$argon2id$v=19$m=19456,t=2,p=1$8ZCVR4QDG/0C4YXMmXc5eg$m/LlQtKDdhxEFEjjkAiV8iTCvwp/xu4N6O8sWaElWH8';

export const localUser = { username: user.name, password_hash: PASSWORD_HASH };

// JSON is YAML, so the values need no quoting rules of their own.
function configuration({ port, admin, directory, upstreamUrl, credential, authority, login, more, route }) {
  return {
    server: {
      public_url: `http://127.0.0.1:${port}`,
      listen: [`127.0.0.1:${port}`],
      admin: `127.0.0.1:${admin}`,
      data_dir: join(directory, 'data'),
    },
    login: login ?? { local: { users: [localUser] } },
    ...(authority && {
      outbound: { ca_files: [authority] },
      oauth_server: { clients: { cimd: { enabled: true, allow_private: true } } },
    }),
    routes: [
      {
        name: 'demo',
        path: '/demo',
        upstream: { url: upstreamUrl, allow_private: true },
        credential: { kind: credential },
        ...route,
      },
    ],
    ...more,
  };
}

/** Waits until the gateway says that it is ready. */
async function ready(child, admin) {
  const deadline = Date.now() + 20_000;
  while (!child.reason) {
    const status = await fetch(`http://127.0.0.1:${admin}/readyz`).then(reply => reply.status, () => 0);
    if (status === 200) return;
    if (Date.now() > deadline) throw new Error(`Postern is not ready, /readyz says ${status}\n${child.output()}`);
    await nextLook();
  }
  throw new Error(`Postern ${child.reason}\n${child.output()}`);
}

/**
 * Starts the gateway and waits until it is ready. `credential` is the kind of what it puts in for the upstream,
 * `authority` the file of an extra trusted CA, for client documents; `login` says who may sign in instead of the one user,
 * with `env` for what it names; `more` are further sections, `route` further keys of the route. `again` stops it and starts it
 * in the same place, with what it kept or without.
 */
export function startPostern({ binary, directory, upstreamUrl, credential = 'oauth', authority, login, env, more, route, defer }) {
  return withFreePorts(2, async ([port, admin]) => {
    const home = join(directory, `postern-${port}`);
    await mkdir(home, { recursive: true });
    const file = join(home, 'postern.yaml');
    const written = configuration({ port, admin, directory: home, upstreamUrl, credential, authority, login, more, route });
    await writeFile(file, JSON.stringify(written, null, 2));
    const gateway = { origin: `http://127.0.0.1:${port}`, url: `http://127.0.0.1:${port}/demo` };
    const run = () => {
      gateway.child = start('postern', binary, ['run', '--config', file], { cwd: home, env });
      return ready(gateway.child, admin);
    };
    gateway.again = async ({ empty }) => {
      await gateway.child.stop();
      if (empty) await rm(join(home, 'data'), { recursive: true });
      await run();
    };
    defer(() => gateway.child.stop());
    await run();
    return gateway;
  });
}

/**
 * Starts `postern demo` with its own configuration, moved to free ports and a directory of its own. `more` is
 * YAML to add at the end.
 */
export async function startDemo({ binary, directory, more = '', defer }) {
  const shipped = await readFile(new URL('../../conf/demo.yaml', import.meta.url), 'utf8');
  return withFreePorts(3, async ([port, upstream, admin]) => {
    const moved = { 8080: port, 8081: upstream, 9090: admin, './postern-data': join(directory, 'data') };
    // In one pass, so that no port that was put in is taken for one to replace.
    const written = shipped.replace(/8080|8081|9090|\.\/postern-data/g, place => moved[place]);
    const file = join(directory, 'demo.yaml');
    await writeFile(file, `${written}\n${more}`);
    const child = start('postern', binary, ['demo', '--config', file], { cwd: directory });
    defer(() => child.stop());
    await ready(child, admin);
    return { origin: `http://127.0.0.1:${port}`, url: `http://127.0.0.1:${port}/demo`, child };
  });
}
