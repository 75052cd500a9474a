/** The HTTP surface: packages/api/src/key-manager.ts. Answers that carry keys are octets, zeroed when they were sent. */
import type { AuditEntry, CheckRequest, CreateProjectKey, ReEncryptionReport } from '@lakebase/api';
import { LakebaseError } from '@lakebase/base';
import { type ProjectUid, parseProjectUid } from '@lakebase/ids';
import type { FastifyInstance, FastifyReply, FastifyRequest } from 'fastify';
import { Readable } from 'node:stream';
import { type TSchema, Type } from 'typebox';
import { Value } from 'typebox/value';
import { readAudit } from './audit/audit-file.ts';
import { freshDeks, rewrapReferences, unwrapDeks } from './data-keys.ts';
import type { InstallationKeys } from './installation-keys.ts';
import type { KeyChanges } from './key-changes.ts';
import type { KeyManager } from './key-manager.ts';
import { isOwnAction } from './record-rollback.ts';
import type { WatchHub } from './watch-hub.ts';

const text = Type.String({ minLength: 1, maxLength: 2_048 });
const kms = Type.Object({
  provider: Type.Union(['AWS_KMS', 'AZURE_KEY_VAULT', 'GCP_KMS', 'VAULT_TRANSIT', 'LOCAL'].map((p) => Type.Literal(p))),
  key: text,
  options: Type.Optional(Type.Record(Type.String({ maxLength: 100 }), Type.String({ maxLength: 16_384 }))),
});
// Ids and actors go into encryption contexts and audit lines.
const name = Type.String({ pattern: '^[!-~]{1,255}$' });
const actor = Type.String({ minLength: 1, maxLength: 255 });
const graceSeconds = Type.Integer({ minimum: 0, maximum: 30 * 86_400 });
const createBody = Type.Object({
  account: name,
  configurationId: Type.Union([name, Type.Null()]),
  kms,
  actor,
  graceSeconds: Type.Optional(graceSeconds),
});
const actorBody = Type.Object({ actor });
const graceBody = Type.Object({ graceSeconds, actor });
const count = Type.Integer({ minimum: 0 });
const progressBody = Type.Object(
  { service: text, below: count, done: count, total: count, bytes: count, finished: Type.Boolean() },
  { additionalProperties: false },
);
const checkBody = Type.Object({ account: name, kms, actor });
const auditBody = Type.Object({
  actor,
  action: Type.String({ pattern: '^[A-Z_]{1,64}$' }),
  account: Type.String({ maxLength: 255 }),
  subject: Type.String({ maxLength: 2_048 }),
  result: Type.Union(['OK', 'DENIED', 'UNREACHABLE', 'FAILED'].map((r) => Type.Literal(r))),
  detail: Type.String({ maxLength: 10_000 }),
});

export interface RouteContext {
  readonly manager: KeyManager;
  readonly changes: KeyChanges;
  readonly hub: WatchHub;
  readonly installation: InstallationKeys;
}

export function registerRoutes(app: FastifyInstance, { manager, changes, hub, installation }: RouteContext): void {
  app.addContentTypeParser('application/octet-stream', { parseAs: 'buffer' }, (_request, body, done) => done(null, body));
  const project = (request: FastifyRequest): ProjectUid => parseProjectUid((request.params as { project: string }).project);
  const P = '/v1/projects/:project';

  app.get('/v1/projects', async () => ({ projects: manager.projects().map((p) => manager.statusOf(p)) }));
  app.get(P, async (request) => manager.statusOf(manager.find(project(request))));
  app.put(P, async (request) => changes.create(project(request), body<CreateProjectKey>(createBody, request)));
  app.delete(P, async (request) => changes.shred(project(request), body<{ actor: string }>(actorBody, request).actor));
  app.put(`${P}/binding`, async (request) => changes.rebind(project(request), body<CreateProjectKey>(createBody, request)));
  app.patch(P, async (request) => {
    const { graceSeconds: seconds, actor: who } = body<{ graceSeconds: number; actor: string }>(graceBody, request);
    return changes.setGrace(project(request), seconds, who);
  });
  app.post(`${P}/rotate`, async (request) => changes.rotate(project(request), body<{ actor: string }>(actorBody, request).actor));
  app.post(`${P}/rewrap-kek`, async (request) => changes.rewrapKek(project(request), body<{ actor: string }>(actorBody, request).actor));
  app.post(`${P}/probe`, async (request) => {
    const { actor: who } = (request.body ?? {}) as { actor?: unknown };
    return manager.probe(project(request), typeof who === 'string' && who !== '' ? who : 'service');
  });
  app.post(`${P}/retire`, async (request) => {
    const { service, below } = body<{ service: string; below: number }>(Type.Object({ service: text, below: Type.Integer() }), request);
    return changes.retire(project(request), service, below);
  });

  app.post(`${P}/re-encrypt`, async (request) => changes.reEncrypt(project(request), body<{ actor: string }>(actorBody, request).actor));
  app.post(`${P}/re-encryption`, async (request) =>
    changes.reportReEncryption(project(request), body<ReEncryptionReport>(progressBody, request)),
  );

  app.post(`${P}/deks`, async (request, reply) => {
    const { count } = body<{ count: number }>(Type.Object({ count: Type.Integer() }), request);
    return secret(reply, await freshDeks(manager, project(request), count));
  });
  app.post(`${P}/unwrap`, async (request, reply) => secret(reply, await unwrapDeks(manager, project(request), octets(request))));
  app.post(`${P}/rewrap`, async (request, reply) => secret(reply, await rewrapReferences(manager, project(request), octets(request))));

  app.post('/v1/installation/deks', async (request, reply) => {
    const { count } = body<{ count: number }>(Type.Object({ count: Type.Integer() }), request);
    return secret(reply, await installation.deks(count));
  });
  app.post('/v1/installation/unwrap', async (request, reply) => secret(reply, await installation.unwrap(octets(request))));

  app.post('/v1/check', async (request) => manager.check(body<CheckRequest>(checkBody, request)));
  app.post('/v1/audit', async (request) => {
    const entry = body<AuditEntry>(auditBody, request);
    if (isOwnAction(entry.action)) throw new LakebaseError('INVALID_ARGUMENT', `${entry.action} is the key manager's own to report`);
    return { sequence: await manager.o.audit.record(entry) };
  });
  app.get('/v1/audit', async (request, reply) => {
    const after = Number((request.query as { after?: string }).after ?? 0);
    if (!Number.isSafeInteger(after) || after < 0) throw new LakebaseError('INVALID_ARGUMENT', 'after is a sequence number');
    await manager.o.audit.flush();
    const lines = readAudit(manager.o.audit.dir, after);
    return reply.type('application/x-ndjson').send(Readable.from(withNewlines(lines), { objectMode: false }));
  });
  app.get('/v1/watch', async (_request, reply) => {
    reply.hijack();
    hub.add(reply.raw);
  });
}

async function* withNewlines(lines: AsyncIterable<string>): AsyncGenerator<Buffer> {
  for await (const line of lines) yield Buffer.from(`${line}\n`);
}

function body<T>(schema: TSchema, request: FastifyRequest): T {
  const first = Value.Errors(schema, request.body)[0];
  if (first !== undefined) throw new LakebaseError('INVALID_ARGUMENT', `body${first.instancePath}: ${first.message}`);
  return request.body as T;
}

function octets(request: FastifyRequest): Buffer {
  if (!Buffer.isBuffer(request.body)) throw new LakebaseError('INVALID_ARGUMENT', 'the body is octets (application/octet-stream)');
  return request.body;
}

function secret(reply: FastifyReply, bytes: Buffer): FastifyReply {
  reply.raw.once('close', () => bytes.fill(0));
  return reply.type('application/octet-stream').header('cache-control', 'no-store').send(bytes);
}
