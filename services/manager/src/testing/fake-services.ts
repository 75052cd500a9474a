/** Stand-ins for the services at the far end of the Manager: real HTTP, state in memory, authenticated as the real ones are.
 *  A gate can hold any call before or after its effect, which is where the tests kill the Manager. */
import { type IncomingMessage, type Server, type ServerResponse, createServer } from 'node:http';
import { once } from 'node:events';
import type { AddressInfo } from 'node:net';
import type { ComputeSpec, ComputeStatus, PageserverHealth, PeerAddress } from '@lakebase/api';
import { verifyToken } from '@lakebase/api';
import { ERROR_CODES, type ErrorCode, HTTP_STATUS, LakebaseError } from '@lakebase/base';
import { FakeKeyManager } from './fake-key-manager.ts';

export interface Call {
  readonly service: string;
  readonly method: string;
  readonly path: string;
  readonly body: unknown;
}
export type Moment = 'before' | 'after';
/** Awaited before and after the effect of every call; throwing answers with the error. */
export type Gate = (call: Call, moment: Moment) => Promise<void> | void;

type Handler = (method: string, path: string, body: never) => unknown;

export class FakeServices implements AsyncDisposable {
  readonly secret: string;
  readonly calls: Call[] = [];
  gate: Gate = () => {};
  readonly templates = new Set<number>();
  readonly pageTimelines = new Map<string, { systemId: string; pgVersion: number }>();
  readonly walTimelines: ReadonlyMap<string, Map<string, { systemId: string; startLsn: string; prevRecordLsn: string }>>;
  readonly computes = new Map<string, { status: ComputeStatus; spec: ComputeSpec }>();
  /** pg_authid of all computes. */
  readonly roles = new Map<string, { verifier: string | null; login: boolean }>();
  readonly databases = new Set<string>();
  /** Services that do not answer. */
  readonly down = new Set<string>();
  /** What a pageserver says of itself. */
  readonly health = new Map<string, PageserverHealth>();
  safekeepers: PeerAddress[] = [];
  readonly keyManager = new FakeKeyManager();
  readonly #servers = new Map<string, Server>();
  readonly #urls = new Map<string, string>();

  private constructor(secret: string, members: readonly string[]) {
    this.secret = secret;
    this.walTimelines = new Map(members.map((m) => [m, new Map()]));
  }

  static async start(secret: string): Promise<FakeServices> {
    const fake = new FakeServices(secret, ['sk1', 'sk2', 'sk3']);
    await fake.#listen('compute', (m, p, b) => fake.#compute(m, p, b));
    for (const id of ['pageserver', 'second']) await fake.#listen(id, (m, p, b) => fake.#pageserver(id, m, p, b));
    await fake.#listen('keys', (m, p, b) => fake.keyManager.handle(m, p, b));
    for (const id of fake.walTimelines.keys()) {
      await fake.#listen(id, (m, p, b) => fake.#safekeeper(id, m, p, b));
      fake.safekeepers.push({ id, httpUrl: fake.url(id), pgHost: '127.0.0.1', pgPort: 1 });
    }
    return fake;
  }

  url(service: string): string {
    return this.#urls.get(service) as string;
  }
  running(): ComputeStatus[] {
    return [...this.computes.values()].map((c) => c.status).filter((s) => s.state === 'RUNNING');
  }
  count(service: string, method: string, pattern: RegExp): number {
    return this.calls.filter((c) => c.service === service && c.method === method && pattern.test(c.path)).length;
  }
  /** As if somebody had killed its Postgres. */
  kill(computeId: string): void {
    const compute = this.computes.get(computeId);
    if (compute !== undefined)
      compute.status = { ...compute.status, state: 'FAILED', error: 'Postgres ended by signal SIGKILL', socketDir: null };
  }
  setActivity(activity: ComputeStatus['activity']): void {
    for (const compute of this.computes.values()) compute.status = { ...compute.status, activity };
  }

  async [Symbol.asyncDispose](): Promise<void> {
    for (const server of this.#servers.values()) {
      server.closeAllConnections();
      server.close();
      await once(server, 'close');
    }
  }

  #compute(method: string, path: string, body: unknown): unknown {
    const [, , kind, id = '', verb, name] = path.replace(/\?.*/, '').split('/');
    if (kind === 'templates') {
      this.templates.add(Number(id));
      return { major: Number(id), endLsn: '0/1000028', prevRecordLsn: '0/1000000', layerBytes: 1 };
    }
    if (id === '') return { computes: [...this.computes.values()].map((c) => c.status) };
    const compute = this.computes.get(id);
    if (method === 'PUT') return this.#startCompute(id, body as ComputeSpec);
    if (verb === 'stop') {
      if (compute !== undefined) compute.status = { ...compute.status, state: 'STOPPED', socketDir: null };
      return compute?.status ?? blank(id, '', 'STOPPED');
    }
    if (compute === undefined || compute.status.state !== 'RUNNING') throw new LakebaseError('NOT_FOUND', `compute ${id} is not running`);
    if (verb === 'roles') {
      const role = this.roles.get(decodeURIComponent(name as string));
      if (role === undefined) throw new LakebaseError('NOT_FOUND', 'no such role');
      return { name: decodeURIComponent(name as string), ...role };
    }
    if (method === 'PATCH') this.#applyCatalog(body as Partial<ComputeSpec>);
    return compute.status;
  }

  #startCompute(id: string, spec: ComputeSpec): ComputeStatus {
    const timeline = `${spec.projectUid}/${spec.timelineId}`;
    if (!this.pageTimelines.has(timeline)) throw new LakebaseError('UNAVAILABLE', 'the pageserver does not know this timeline');
    this.#applyCatalog(spec);
    const status = { ...blank(id, spec.endpointId, 'RUNNING'), socketDir: `/tmp/fake-${id}`, pid: 1, stages: { ready: 1 } };
    this.computes.set(id, { status, spec });
    return status;
  }

  #applyCatalog(change: Partial<ComputeSpec>): void {
    for (const role of change.roles ?? []) {
      if (role.name.startsWith('refused')) throw new LakebaseError('INTERNAL', 'the server says no');
      this.roles.set(role.name, { verifier: role.verifier ?? this.roles.get(role.name)?.verifier ?? null, login: role.login });
    }
    for (const database of change.databases ?? []) this.databases.add(database.name);
    for (const name of change.droppedDatabases ?? []) this.databases.delete(name);
    for (const name of change.droppedRoles ?? []) {
      if (name.startsWith('busy'))
        throw new LakebaseError('INTERNAL', `role "${name}" cannot be dropped because some objects depend on it`);
      this.roles.delete(name);
    }
  }

  #pageserver(id: string, method: string, path: string, body: unknown): unknown {
    if (path === '/healthz') return { status: 'ok', ...this.health.get(id) };
    const [, , kind, project = '', timeline] = path.split('/');
    if (kind === 'templates') {
      if (!this.templates.has(Number(project))) throw new LakebaseError('NOT_FOUND', 'no template');
      return { major: Number(project), endLsn: '0/1000028', prevRecordLsn: '0/1000000', layerBytes: 1 };
    }
    const key = `${project}/${timeline}`;
    if (method === 'DELETE') {
      if (!this.pageTimelines.delete(key)) throw new LakebaseError('NOT_FOUND', 'no such timeline');
      return undefined;
    }
    const { systemId, pgVersion } = body as { systemId: string; pgVersion: number };
    if (!this.templates.has(pgVersion)) throw new LakebaseError('NOT_FOUND', 'no template');
    const known = this.pageTimelines.get(key);
    if (known !== undefined && known.systemId !== systemId) throw new LakebaseError('CONFLICT', 'exists with another system identifier');
    this.pageTimelines.set(key, { systemId, pgVersion });
    return {
      project,
      timeline,
      pgVersion,
      systemId,
      startLsn: '0/1000028',
      startPrevRecordLsn: '0/1000000',
      lastRecordLsn: '0/1000028',
      diskConsistentLsn: '0/1000028',
      logicalSizeBytes: 0,
      state: 'ACTIVE',
      error: null,
      layers: 1,
    };
  }

  #safekeeper(id: string, method: string, path: string, body: unknown): unknown {
    const timelines = this.walTimelines.get(id) as Map<string, { systemId: string; startLsn: string; prevRecordLsn: string }>;
    const key = path.split('/').slice(3, 5).join('/');
    if (method === 'PUT') timelines.set(key, body as never);
    else if (method === 'DELETE') {
      if (!timelines.delete(key)) throw new LakebaseError('NOT_FOUND', 'no such timeline');
    }
    return {};
  }

  async #listen(service: string, handler: Handler): Promise<void> {
    const server = createServer((request, response) => void this.#serve(service, handler, request, response));
    server.listen(0, '127.0.0.1');
    await once(server, 'listening');
    this.#servers.set(service, server);
    this.#urls.set(service, `http://127.0.0.1:${(server.address() as AddressInfo).port}`);
  }

  async #serve(service: string, handler: Handler, request: IncomingMessage, response: ServerResponse): Promise<void> {
    if (this.down.has(service)) return void request.socket.destroy();
    const chunks: Buffer[] = [];
    for await (const chunk of request) chunks.push(chunk as Buffer);
    const bytes = Buffer.concat(chunks);
    const octets = request.headers['content-type'] === 'application/octet-stream';
    const text = octets ? '' : bytes.toString();
    const call: Call = {
      service,
      method: request.method ?? '',
      path: request.url ?? '',
      body: octets ? bytes : text === '' ? undefined : JSON.parse(text),
    };
    try {
      if (verifyToken(this.secret, (request.headers.authorization ?? '').replace('Bearer ', ''), ['service']) === undefined)
        throw new LakebaseError('UNAUTHENTICATED', 'no token');
      if (service === 'keys' && call.path === '/v1/watch') return this.keyManager.watch(request, response);
      this.calls.push(call);
      await this.gate(call, 'before');
      const answer = handler(call.method, call.path, call.body as never);
      await this.gate(call, 'after');
      if (Buffer.isBuffer(answer))
        response.writeHead(200, { 'content-type': 'application/octet-stream', 'content-length': answer.length }).end(answer);
      else response.writeHead(200, { 'content-type': 'application/json' }).end(answer === undefined ? '' : JSON.stringify(answer));
    } catch (error) {
      const code: ErrorCode = error instanceof LakebaseError && error.code in ERROR_CODES ? error.code : 'INTERNAL';
      response
        .writeHead(HTTP_STATUS[code], { 'content-type': 'application/json' })
        .end(JSON.stringify({ error_code: code, message: (error as Error).message }));
    }
  }
}

const blank = (computeId: string, endpointId: string, state: ComputeStatus['state']): ComputeStatus => ({
  computeId,
  endpointId,
  state,
  error: null,
  term: 1,
  startLsn: '0/1000028',
  socketDir: null,
  port: 5432,
  pid: null,
  stages: {},
  activity: { active: false, lastActiveAt: null, reason: null },
});
