/** `lakebase keys|workspaces|users|encryption|audit …`: the account API for terminals. Needs a token of an account admin (the installation's
 *  own token is one). */
import type { Command } from 'commander';
import { randomBytes } from 'node:crypto';
import { mkdirSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { LakebaseError, sleep } from '@lakebase/base';
import { type Json, textOf } from '../api-client.ts';
import { addAuditCommand } from './audit.ts';
import { type Context, show, showList, withJson } from './context.ts';

const enc = encodeURIComponent;
export const ACCOUNT = 'accounts/default';

interface KeyOptions {
  readonly json?: boolean;
  readonly aws?: string;
  readonly azure?: string;
  readonly gcp?: string;
  readonly vault?: string;
  readonly address?: string;
  readonly namespace?: string;
  readonly local?: string;
  readonly option: readonly string[];
}

const withKey = (c: Command): Command =>
  withJson(
    c
      .option('--aws <arn>', 'AWS KMS: ARN of the key')
      .option('--azure <url>', 'Azure Key Vault or Managed HSM: URL of the key, with or without version')
      .option('--gcp <name>', 'Google Cloud KMS: projects/P/locations/L/keyRings/R/cryptoKeys/K')
      .option('--vault <mount/key>', 'HashiCorp Vault or OpenBao transit (with --address)')
      .option('--address <url>', 'address of the Vault')
      .option('--namespace <name>', 'namespace of the Vault')
      .option('--local <name>', 'a key file of this installation: see "lakebase keys create-local"')
      .option(
        '--option <name=value>',
        'provider option (repeatable), docs/operating/kms.md',
        (v: string, all: string[]) => [...all, v],
        [] as string[],
      ),
  );

export function addKeyCommands(program: Command, c: Context): void {
  const account = (method: string, path: string, body?: unknown): Promise<Json> => c.api().call(method, `${ACCOUNT}/${path}`, body);
  keys(program, c, account);
  workspaces(program, c, account);
  users(program, c, account);
  encryption(program, c, account);
  addAuditCommand(program, c, ACCOUNT);
}

const RE_ENCRYPTION_POLL_MS = 1_000;

type Call = (method: string, path: string, body?: unknown) => Promise<Json>;

function keys(program: Command, c: Context, account: Call): void {
  const group = program.command('keys').description('customer-managed keys of the account');
  withJson(group.command('list').description('all key configurations')).action(async (o: { json?: boolean }) => {
    showList(c, o.json, (await account('GET', 'customer-managed-keys')) as unknown as Json[], [
      ['ID', (k) => k.customer_managed_key_id],
      ['USE CASES', (k) => (k.use_cases as string[]).join(',')],
      ['KEY', keyText],
    ]);
  });
  withKey(group.command('create').description('store a key configuration; nothing uses it before it is bound to a workspace')).action(
    async (o: KeyOptions) => show(c, o.json, await account('POST', 'customer-managed-keys', keyBody(o))),
  );
  withJson(group.command('delete <id>').description('delete a key configuration that nothing uses')).action(
    async (id: string, o: { json?: boolean }) => show(c, o.json, await account('DELETE', `customer-managed-keys/${enc(id)}`)),
  );
  withKey(
    group
      .command('check [id]')
      .description(
        'dry run: wrap and unwrap with a stored configuration, or with one given by options; stores nothing; exit code 1 when the key cannot be used',
      ),
  ).action(async (id: string | undefined, o: KeyOptions) => {
    const result =
      id === undefined
        ? await account('POST', 'customer-managed-keys/check', keyBody(o))
        : await account('POST', `customer-managed-keys/${enc(id)}/check`);
    show(c, o.json, result);
    if (result['ok'] !== true) throw new LakebaseError('CONFLICT', `the key cannot be used: ${textOf(result['message'])}`);
  });
  group
    .command('create-local <name>')
    .description(
      'make a key file on this machine: a customer key for trials and drills. Taking the file away revokes it, deleting it shreds',
    )
    .action((name: string) => {
      c.out(createLocalKey(c, name));
    });
}

/** Path of a new key file with 32 random bytes in hex. */
export function createLocalKey(c: Pick<Context, 'home'>, name: string): string {
  if (!/^[a-z0-9][a-z0-9-]{0,62}$/.test(name))
    throw new LakebaseError('INVALID_ARGUMENT', 'a key name has lower-case letters, digits and hyphens');
  mkdirSync(c.home.keysDir, { recursive: true, mode: 0o700 });
  const path = join(c.home.keysDir, `${name}.key`);
  writeFileSync(path, `${randomBytes(32).toString('hex')}\n`, { mode: 0o600, flag: 'wx' });
  return path;
}

function workspaces(program: Command, c: Context, account: Call): void {
  const group = program.command('workspaces').description('workspaces of the account: which key new projects get');
  withJson(group.command('list').description('all workspaces')).action(async (o: { json?: boolean }) => {
    showList(c, o.json, (await account('GET', 'workspaces')) as unknown as Json[], [
      ['WORKSPACE', (w) => w.workspace_id],
      ['NAME', (w) => w.workspace_name],
      ['TIER', (w) => w.pricing_tier],
      ['KEY', (w) => w.managed_services_customer_managed_key_id ?? 'installation root key'],
    ]);
  });
  withJson(
    group
      .command('create <name>')
      .description('make a workspace')
      .option('--tier <tier>', 'STANDARD, PREMIUM or ENTERPRISE')
      .option('--key <id>', 'key configuration'),
  ).action(async (name: string, o: { json?: boolean; tier?: string; key?: string }) => {
    show(
      c,
      o.json,
      await account('POST', 'workspaces', { workspace_name: name, pricing_tier: o.tier, managed_services_customer_managed_key_id: o.key }),
    );
  });
  withJson(group.command('bind <workspace> <key>').description('new projects of the workspace get this key; it must work now')).action(
    async (workspace: string, key: string, o: { json?: boolean }) =>
      show(c, o.json, await account('PATCH', `workspaces/${enc(workspace)}`, { managed_services_customer_managed_key_id: key })),
  );
  withJson(
    group.command('unbind <workspace>').description('new projects get the installation root key; existing ones keep what they have'),
  ).action(async (workspace: string, o: { json?: boolean }) =>
    show(c, o.json, await account('PATCH', `workspaces/${enc(workspace)}`, { managed_services_customer_managed_key_id: null })),
  );
  group
    .command('delete <workspace>')
    .description('delete an empty workspace')
    .action(async (workspace: string) => {
      await account('DELETE', `workspaces/${enc(workspace)}`);
      c.out(`deleted workspace ${workspace}`);
    });
}

function users(program: Command, c: Context, account: Call): void {
  const group = program.command('users').description('users of the account, their workspaces and tokens');
  const idOf = async (name: string): Promise<string> => {
    const found = ((await account('GET', 'scim/v2/Users'))['Resources'] as Json[]).find((u) => u['userName'] === name);
    if (found === undefined) throw new LakebaseError('NOT_FOUND', `there is no user ${name}`);
    return textOf(found['id']);
  };
  withJson(group.command('list').description('all users')).action(async (o: { json?: boolean }) => {
    showList(c, o.json, (await account('GET', 'scim/v2/Users'))['Resources'] as Json[], [
      ['USER', (u) => u.userName],
      ['ROLES', (u) => (u.roles as { value: string }[]).map((r) => r.value).join(',') || '-'],
      ['WORKSPACES', (u) => (u.workspaces as number[]).join(',') || '-'],
    ]);
  });
  withJson(
    group.command('create <name>').description('make a user').option('--account-admin', 'may manage keys, workspaces and users'),
  ).action(async (name: string, o: { json?: boolean; accountAdmin?: boolean }) => {
    const roles = o.accountAdmin === true ? [{ value: 'account_admin' }] : [];
    show(c, o.json, await account('POST', 'scim/v2/Users', { userName: name, roles }));
  });
  group
    .command('delete <name>')
    .description('delete a user; its tokens end')
    .action(async (name: string) => {
      await account('DELETE', `scim/v2/Users/${await idOf(name)}`);
      c.out(`deleted user ${name}`);
    });
  for (const [verb, method, what] of [
    ['assign', 'PUT', 'may work in the workspace'],
    ['unassign', 'DELETE', 'may no longer work in the workspace'],
  ] as const)
    group
      .command(`${verb} <name> <workspace>`)
      .description(`the user ${what}`)
      .action(async (name: string, workspace: string) => {
        await account(method, `workspaces/${enc(workspace)}/permissionassignments/principals/${await idOf(name)}`, {
          permissions: ['USER'],
        });
        c.out(`${name} ${what.replace('the workspace', `workspace ${workspace}`)}`);
      });
  group
    .command('token <name>')
    .description('print a new token of a user: for a workspace, or for the account')
    .option('--workspace <id>', 'work in this workspace; without it the token is for the account', Number)
    .option('--lifetime <seconds>', 'ends after this long', Number)
    .action(async (name: string, o: { workspace?: number; lifetime?: number }) => {
      const answer = await account('POST', 'tokens', { user_name: name, workspace_id: o.workspace, lifetime_seconds: o.lifetime });
      c.out(textOf(answer['token_value']));
    });
}

function encryption(program: Command, c: Context, account: Call): void {
  const group = program.command('encryption').description('the keys of a project');
  const add = (name: string, what: string, run: (path: string, args: readonly string[]) => Promise<Json>): void => {
    withJson(group.command(name).description(what).option('-w, --workspace <id>', 'workspace', '1')).action(
      async (project: string, ...rest: unknown[]) => {
        const o = rest.at(-2) as { json?: boolean; workspace: string };
        const args = rest.filter((r) => typeof r === 'string');
        show(c, o.json, await run(`workspaces/${enc(o.workspace)}/projects/${enc(project)}/encryption`, args));
      },
    );
  };
  add('show <project>', 'configuration, versions, state, last check and history', (p) => account('GET', p));
  add('move <project> <key>', 'put the project under another key, online: "root" for the installation root key', (p, [key]) =>
    account('PATCH', p, { customer_managed_key_id: key === 'root' ? null : key }),
  );
  add('grace <project> <seconds>', 'how long the KMS of the project may be unreachable before nothing is served', (p, [seconds]) =>
    account('PATCH', p, { grace_seconds: Number(seconds) }),
  );
  add('rotate <project>', 'a new KEK from now on; wrapped data keys are wrapped again, no data is touched', (p) =>
    account('POST', `${p}/rotate`),
  );
  add('rewrap <project>', 'wrap the KEKs with the newest version of the customer key', (p) => account('POST', `${p}/rewrap`));
  withJson(
    group
      .command('re-encrypt <project>')
      .description(
        'a new KEK, and every object written before it anew under new data keys, in the background; "encryption show" says how far it is',
      )
      .option('-w, --workspace <id>', 'workspace', '1')
      .option('--wait', 'until it is done, with progress on stderr'),
  ).action(async (project: string, o: { json?: boolean; workspace: string; wait?: boolean }) => {
    const path = `workspaces/${enc(o.workspace)}/projects/${enc(project)}/encryption`;
    let status = await account('POST', `${path}/re-encrypt`);
    for (let told = ''; o.wait === true; status = await account('GET', path)) {
      const r = status['re_encryption'] as Json;
      const line = `${textOf(r['objects_done'])} of ${textOf(r['objects_total'])} objects, ${Math.round(Number(r['bytes_written']) / 1_048_576)} MB written; waiting for ${(r['waiting_for'] as string[]).join(', ') || 'nothing'}`;
      if (line !== told) c.err(`lakebase: ${line}`);
      told = line;
      if (r['state'] === 'DONE') break;
      await sleep(RE_ENCRYPTION_POLL_MS);
    }
    show(c, o.json, status);
  });
  withJson(group.command('shredded').description('of deleted projects: which keys were destroyed, when, at whose request')).action(
    async (o: { json?: boolean }) => {
      const { shred_reports: reports } = await account('GET', 'shred-reports');
      showList(c, o.json, reports as Json[], [
        ['PROJECT', (r) => r.project_id],
        ['UID', (r) => r.project],
        ['TIME', (r) => r.time],
        ['KEKS', (r) => (r.destroyedKeks as Json[]).map((k) => `${textOf(k.version)} (${textOf(k.keyId)})`).join(', ')],
      ]);
    },
  );
  add('check <project>', 'probe the key now', (p) => account('POST', `${p}/check`));
}

function keyText(k: Json): string {
  const [field, info] = Object.entries(k).find(([name]) => name.endsWith('_key_info')) ?? ['', {}];
  const parts = Object.entries(info as Json).filter(([name]) => name !== 'key_alias' && name !== 'key_region');
  return `${field.replace('_key_info', '')}: ${parts.map(([, v]) => textOf(v)).join(' ')}`;
}

export function keyBody(o: Partial<KeyOptions>): Json {
  const options = Object.fromEntries((o.option ?? []).map(optionPair));
  const given = [o.aws, o.azure, o.gcp, o.vault, o.local].filter((v) => v !== undefined);
  if (given.length !== 1) throw new LakebaseError('INVALID_ARGUMENT', 'name one key: --aws, --azure, --gcp, --vault or --local');
  const more = Object.keys(options).length === 0 ? {} : { options };
  if (o.aws !== undefined) return { aws_key_info: { key_arn: o.aws }, ...more };
  if (o.gcp !== undefined) return { gcp_key_info: { kms_key_id: o.gcp }, ...more };
  if (o.local !== undefined) return { local_key_info: { key_name: o.local }, ...more };
  if (o.azure !== undefined) {
    const match = /^(https?:\/\/[^/]+)\/keys\/([^/]+)(?:\/([^/]+))?\/?$/.exec(o.azure);
    if (match === null)
      throw new LakebaseError('INVALID_ARGUMENT', '--azure takes https://VAULT/keys/NAME or https://VAULT/keys/NAME/VERSION');
    return { azure_key_info: { key_vault_uri: match[1], key_name: match[2], version: match[3] }, ...more };
  }
  const vault = o.vault as string;
  const at = vault.lastIndexOf('/');
  if (o.address === undefined) throw new LakebaseError('INVALID_ARGUMENT', '--vault needs --address');
  const mount = at < 0 ? undefined : vault.slice(0, at);
  return { vault_key_info: { address: o.address, mount, key_name: vault.slice(at + 1), namespace: o.namespace }, ...more };
}

function optionPair(text: string): [string, string] {
  const at = text.indexOf('=');
  if (at < 1) throw new LakebaseError('INVALID_ARGUMENT', `--option takes name=value, got ${text}`);
  return [text.slice(0, at), text.slice(at + 1)];
}
