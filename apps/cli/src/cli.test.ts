/** The command line against a small fake of the API: arguments in, lines and exit codes out. */
import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { chmodSync, mkdirSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { type IncomingMessage, createServer } from 'node:http';
import type { AddressInfo } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, before, test } from 'node:test';

const home = mkdtempSync(join(tmpdir(), 'lb-cli-'));
const seen: { method: string; path: string; body: string; token: string }[] = [];
const answers = new Map<string, unknown>();
const server = createServer(
  (request, response) =>
    void serve(request).then(({ status, body }) =>
      response.writeHead(status, { 'content-type': 'application/json' }).end(JSON.stringify(body)),
    ),
);
let port = 0;

async function serve(request: IncomingMessage): Promise<{ status: number; body: unknown }> {
  let body = '';
  for await (const chunk of request) body += String(chunk);
  const path = (request.url ?? '').replace('/api/2.0/postgres/', '');
  seen.push({ method: request.method ?? '', path, body, token: request.headers.authorization ?? '' });
  const answer = answers.get(`${request.method} ${path}`);
  return answer === undefined
    ? { status: 404, body: { error_code: 'NOT_FOUND', message: 'project id not found', details: [] } }
    : { status: 200, body: answer };
}

async function cli(args: readonly string[], env: NodeJS.ProcessEnv = {}): Promise<{ code: number; out: string; err: string }> {
  const child = spawn(process.execPath, ['--conditions=lakebase-source', join(import.meta.dirname, 'main.ts'), ...args], {
    env: { PATH: process.env.PATH, LAKEBASE_HOME: home, LAKEBASE_HTTP_PORT: String(port), ...env },
    stdio: ['ignore', 'pipe', 'pipe'],
  });
  let out = '';
  let err = '';
  child.stdout.on('data', (c) => (out += String(c)));
  child.stderr.on('data', (c) => (err += String(c)));
  const [code] = (await once(child, 'close')) as [number];
  return { code, out, err };
}

const B = 'projects/default/branches/production';
before(async () => {
  writeFileSync(join(home, 'admin-token'), 'lkb_pat_test\n');
  writeFileSync(join(home, 'credentials.json'), JSON.stringify({ 'default/production': { role: 'owner', password: 'pä/ss' } }));
  server.listen(0, '127.0.0.1');
  await once(server, 'listening');
  port = (server.address() as AddressInfo).port;
  const endpoint = {
    name: `${B}/endpoints/primary`,
    endpoint_id: 'primary',
    uid: 'ep-abc',
    status: { current_state: 'IDLE', hosts: { host: 'localhost', port: 5 } },
  };
  answers.set(`GET ${B}/endpoints`, { endpoints: [endpoint] });
  answers.set('GET projects', { projects: [{ project_id: 'a', status: { display_name: 'A\u001b[31m' } }], next_page_token: 't' });
  answers.set('GET projects?page_token=t', { projects: [{ project_id: 'b', status: {} }] });
  answers.set(`POST ${B}/roles?role_id=app`, { name: `${B}/roles/app/operations/1`, done: false, metadata: { password: 'once' } });
  answers.set(`GET ${B}/roles/app/operations/1`, { done: true, response: { role_id: 'app' } });
  answers.set(`POST ${B}/endpoints/primary/suspend`, {
    done: true,
    error: { error_code: 'TEMPORARILY_UNAVAILABLE', message: 'cannot stop' },
  });
});
after(() => {
  server.close();
  rmSync(home, { recursive: true, force: true });
});

test('lists all pages, as a table and as JSON, and keeps escapes off the terminal', async () => {
  const table = await cli(['projects', 'list']);
  assert.match(table.out, /^PROJECT {2}NAME/);
  assert.match(table.out, /\na {8}A\?\[31m/);
  const json = await cli(['projects', 'list', '--json']);
  assert.deepEqual(
    (JSON.parse(json.out) as { project_id: string }[]).map((p) => p.project_id),
    ['a', 'b'],
  );
  assert.equal(seen.at(-1)?.token, 'Bearer lkb_pat_test');
});

test('waits for operations and prints what is shown once', async () => {
  const made = await cli(['roles', 'create', 'app', '--json']);
  assert.deepEqual(JSON.parse(made.out), { role_id: 'app', password: 'once' });
  const failed = await cli(['suspend']);
  assert.equal(failed.code, 1);
  assert.match(failed.err, /^lakebase: cannot stop/);
});

test('connection-string escapes; psql gets the password by its environment only', async () => {
  assert.equal((await cli(['connection-string'])).out, 'postgresql://owner:p%C3%A4%2Fss@localhost:5/databricks_postgres\n');
  const without = await cli(['psql'], { PATH: '/nonexistent' });
  assert.match(without.err, /no psql on this machine/);
  const bin = join(home, 'bin');
  mkdirSync(bin);
  writeFileSync(join(bin, 'psql'), '#!/bin/sh\necho "$PGUSER $PGPASSWORD $PGPORT $*"\nexit 3\n');
  chmodSync(join(bin, 'psql'), 0o755);
  const run = await cli(['psql', 'production', '-Atc', 'select 1'], { PATH: `${bin}:${process.env.PATH ?? ''}` });
  assert.equal(run.out, 'owner pä/ss 5 -Atc select 1\n');
  assert.equal(run.code, 3);
});

test('says plainly that nothing runs, or that there is nothing here', async () => {
  const away = await cli(['projects', 'list'], { LAKEBASE_HTTP_PORT: '1' });
  assert.equal(away.code, 1);
  assert.match(away.err, /does not answer at http:\/\/127\.0\.0\.1:1: is it running\?/);
  const empty = await cli(['branches', 'list'], { LAKEBASE_HOME: join(home, 'nothing') });
  assert.equal(empty.code, 2);
  assert.match(empty.err, /no Lakebase in .*: run "lakebase up" there/);
  assert.equal((await cli(['status'])).code, 1);
});

test('--help everywhere', async () => {
  for (const args of [[], ['up'], ['psql'], ['logs'], ['endpoints', 'update'], ['roles', 'create'], ['databases']])
    assert.match((await cli([...args, '--help'])).out, /Usage: lakebase/);
});
