/** A project under a customer key: what the tests of keys play on. By default the key is a file, and taking that away revokes it; any other
 *  comes from a fake KMS, whose switches do. */
import { existsSync, readFileSync, renameSync } from 'node:fs';
import { join } from 'node:path';
import { type Cluster, eventually } from '@lakebase/testkit';
import pg from 'pg';

type Json = Record<string, any>; // oxlint-disable-line no-explicit-any -- answers are read freely in tests

export class PublicApi {
  readonly #cluster: Cluster;
  readonly #headers: Record<string, string>;

  constructor(cluster: Cluster, workspace?: string) {
    this.#cluster = cluster;
    const token = readFileSync(join(cluster.home, 'admin-token'), 'utf8').trim();
    this.#headers = { authorization: `Bearer ${token}`, ...(workspace === undefined ? {} : { 'x-databricks-org-id': workspace }) };
  }

  async raw(method: string, path: string, body?: unknown): Promise<{ status: number; body: Json }> {
    const response = await fetch(`http://127.0.0.1:${this.#cluster.httpPort}/api/2.0/${path}`, {
      method,
      headers: { ...this.#headers, ...(body === undefined ? {} : { 'content-type': 'application/json' }) },
      ...(body === undefined ? {} : { body: JSON.stringify(body) }),
    });
    const text = await response.text();
    return {
      status: response.status,
      body: response.headers.get('content-type')?.startsWith('application/json') === true ? (JSON.parse(text) as Json) : { text },
    };
  }
  async call(method: string, path: string, body?: unknown): Promise<Json> {
    const answer = await this.raw(method, path, body);
    if (answer.status >= 300) throw new Error(`${method} ${path}: ${answer.status} ${JSON.stringify(answer.body)}`);
    return answer.body;
  }
  /** The finished operation's first answer (a new password is in its metadata). */
  async operate(method: string, path: string, body?: unknown): Promise<Json> {
    const first = await this.call(method, `postgres/${path}`, body);
    await eventually(`${method} ${path}`, async () => {
      const now = first['done'] === true ? first : await this.call('GET', `postgres/${String(first['name'])}`);
      if (now['error'] !== undefined) throw new Error(JSON.stringify(now['error']));
      return now['done'] === true ? true : undefined;
    });
    return first;
  }
}

export class KeyedProject {
  readonly api: PublicApi;
  readonly account: PublicApi;
  readonly name: string;
  readonly uid: string;
  readonly workspace: string;
  readonly keyFile: string;
  readonly password: string;
  readonly #cluster: Cluster;
  readonly #endpoint: Json;

  private constructor(
    cluster: Cluster,
    api: PublicApi,
    given: { name: string; uid: string; workspace: string; password: string; endpoint: Json },
  ) {
    this.#cluster = cluster;
    this.api = api;
    this.account = new PublicApi(cluster);
    this.name = given.name;
    this.uid = given.uid;
    this.workspace = given.workspace;
    this.password = given.password;
    this.keyFile = join(cluster.home, 'keys', `${given.name}.key`);
    this.#endpoint = given.endpoint;
  }

  static async create(cluster: Cluster, name: string): Promise<KeyedProject> {
    const made = await cluster.cli(['keys', 'create-local', name]);
    if (made.code !== 0) throw new Error(made.stderr);
    return KeyedProject.under(cluster, name, { local_key_info: { key_name: name } });
  }

  /** A workspace bound to a key, and a project in it. `configuration`: of the key, as the account API takes it. */
  static async under(cluster: Cluster, name: string, configuration: Json): Promise<KeyedProject> {
    const account = new PublicApi(cluster);
    const key = await account.call('POST', 'accounts/default/customer-managed-keys', configuration);
    const workspace = await account.call('POST', 'accounts/default/workspaces', {
      workspace_name: name,
      managed_services_customer_managed_key_id: key['customer_managed_key_id'],
    });
    const api = new PublicApi(cluster, String(workspace['workspace_id']));
    await api.operate('POST', `projects?project_id=${name}`, {});
    const branch = `projects/${name}/branches/production`;
    const { metadata } = await api.operate('POST', `${branch}/roles/owner/reset-password`, {});
    const endpoint = await api.call('GET', `postgres/${branch}/endpoints/primary`);
    const uid = String((await api.call('GET', `postgres/projects/${name}`))['uid']).replaceAll('-', '');
    return new KeyedProject(cluster, api, {
      name,
      uid,
      workspace: String(workspace['workspace_id']),
      password: String((metadata as Json)['password']),
      endpoint,
    });
  }

  get endpointUid(): string {
    return String(this.#endpoint['uid']);
  }

  async connect(overrides: pg.ClientConfig = {}): Promise<pg.Client> {
    const client = new pg.Client({
      host: '127.0.0.1',
      port: this.#cluster.pgPort,
      user: 'owner',
      password: this.password,
      database: 'databricks_postgres',
      options: `endpoint=${String(this.#endpoint['uid'])}`,
      ...overrides,
    });
    client.on('error', () => {});
    await client.connect();
    return client;
  }

  async state(): Promise<string> {
    return String((await this.api.call('GET', `postgres/projects/${this.name}`))['status']['encryption']['state']);
  }

  /** `status.encryption` as the account admin sees it. */
  encryption(): Promise<Json> {
    return this.account.call('GET', this.encryptionPath);
  }
  get encryptionPath(): string {
    return encryptionPath(this.workspace, this.name);
  }

  revoke(): void {
    renameSync(this.keyFile, `${this.keyFile}.revoked`);
  }
  restore(): void {
    if (existsSync(`${this.keyFile}.revoked`)) renameSync(`${this.keyFile}.revoked`, this.keyFile);
  }
}

export const encryptionPath = (workspace: string, project: string): string =>
  `accounts/default/workspaces/${workspace}/projects/${project}/encryption`;
