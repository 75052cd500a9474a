/** HTTP surface of packages/api, safekeeper.ts. Bodies are checked here; everything behind works on parsed values. */
import {
  type ArchiveEndRequest,
  type ConfigureRequest,
  type CreateWalTimeline,
  type ElectedRequest,
  type ElectedResponse,
  type PeerAddress,
  type SubscribeRequest,
  type VoteRequest,
  type VoteResponse,
  timelineScope,
} from '@lakebase/api';
import { LakebaseError } from '@lakebase/base';
import { type ProjectUid, type TimelineId, formatLsn, parseProjectUid, parseTerm, parseTimelineId } from '@lakebase/ids';
import { parseConfig } from '@lakebase/service-kit';
import { configurationFromJson, historyToJson } from '@lakebase/wal-quorum';
import type { FastifyInstance, FastifyRequest } from 'fastify';
import { type TObject, Type } from 'typebox';
import { electedFromJson } from './adoption.ts';
import type { PeerFeed } from './peer-feed.ts';
import type { Timelines } from './timelines.ts';

const lsnText = Type.String({ maxLength: 17 });
const term = Type.Integer({ minimum: 1 });
const ids = Type.Array(Type.String({ maxLength: 64 }), { maxItems: 16 });
const configuration = Type.Object({ generation: Type.Integer({ minimum: 0 }), members: ids, newMembers: Type.Union([ids, Type.Null()]) });
const lineages = Type.Array(Type.Object({ number: Type.Integer({ minimum: 0 }), startLsn: lsnText }), { minItems: 1, maxItems: 64 });
const createSchema = Type.Object({
  systemId: Type.String({ pattern: '^[0-9]{1,20}$' }),
  pgVersion: Type.Integer({ minimum: 14, maximum: 999_999 }),
  startLsn: lsnText,
  prevRecordLsn: lsnText,
  lineages: Type.Optional(lineages),
  membership: Type.Optional(Type.Object({ member: Type.String({ maxLength: 64 }), configuration })),
  incarnation: Type.Optional(Type.String({ maxLength: 64 })),
});
const voteSchema = Type.Object({ term, configuration: Type.Optional(configuration) });
const address = Type.Object({
  id: Type.String({ maxLength: 64 }),
  httpUrl: Type.String({ maxLength: 1024 }),
  pgHost: Type.String({ maxLength: 1024 }),
  pgPort: Type.Integer({ minimum: 1, maximum: 65535 }),
});
const electedSchema = Type.Object({
  term,
  termStartLsn: lsnText,
  lastRecordLsn: lsnText,
  termHistory: Type.Array(Type.Object({ term: Type.Integer({ minimum: 1 }), startLsn: lsnText })),
  donor: address,
  voters: Type.Array(Type.String({ maxLength: 64 }), { maxItems: 16 }),
  configuration: Type.Optional(configuration),
});
const subscribeSchema = Type.Object({
  term,
  host: Type.String({ minLength: 1, maxLength: 1024 }),
  port: Type.Integer({ minimum: 1, maximum: 65535 }),
  user: Type.String({ minLength: 1, maxLength: 63 }),
  standbyName: Type.String({ pattern: '^[A-Za-z0-9_-]{1,63}$' }),
  configuration: Type.Optional(configuration),
});

const configureSchema = Type.Object({
  configuration,
  nodes: Type.Array(address, { maxItems: 32 }),
  make: Type.Union([
    Type.Object({ member: Type.String({ maxLength: 64 }), incarnation: Type.String({ maxLength: 64 }), timeline: createSchema }),
    Type.Null(),
  ]),
});
const archiveEndSchema = Type.Object({
  systemId: Type.String({ pattern: '^[0-9]{1,20}$' }),
  pgVersion: Type.Integer({ minimum: 14, maximum: 999_999 }),
  lineages,
  from: lsnText,
  prevRecordLsn: lsnText,
});
const catchUpSchema = Type.Object({ donor: address });

interface Params {
  readonly project: ProjectUid;
  readonly timeline: TimelineId;
}

function params(request: FastifyRequest): Params {
  const raw = request.params as Record<string, unknown>;
  return { project: parseProjectUid(raw['project']), timeline: parseTimelineId(raw['timeline']) };
}

function body<T>(schema: TObject, request: FastifyRequest): T {
  try {
    return parseConfig(schema, request.body ?? {}, 'request body') as T;
  } catch (error) {
    throw new LakebaseError('INVALID_ARGUMENT', error instanceof Error ? error.message : 'bad request body');
  }
}

export function addRoutes(app: FastifyInstance, timelines: Timelines, feed: PeerFeed): void {
  const options = {
    config: {
      scopes: (request: FastifyRequest) => {
        const raw = request.params as Record<string, string>;
        return [timelineScope(raw['project'] ?? '', raw['timeline'] ?? '')];
      },
    },
  };
  const path = '/v1/timelines/:project/:timeline';
  const find = (request: FastifyRequest) => {
    const { project, timeline } = params(request);
    return timelines.get(project, timeline);
  };

  // Making and destroying is for services: a compute's token must not reach the WAL of its own past.
  app.put(path, async (request) => {
    const { project, timeline } = params(request);
    const wanted = body<CreateWalTimeline>(createSchema, request);
    if (BigInt(wanted.systemId) >= 1n << 64n) throw new LakebaseError('INVALID_ARGUMENT', 'systemId does not fit 64 bits');
    return timelines.create(project, timeline, wanted);
  });
  app.get(path, options, async (request) => find(request).status());
  app.delete(path, async (request, reply) => {
    const { project, timeline } = params(request);
    await timelines.remove(project, timeline, (request.query as { objects?: unknown }).objects === 'keep');
    return reply.code(204).send();
  });
  app.post(`${path}/vote`, options, async (request): Promise<VoteResponse> => {
    const timeline = find(request);
    const wanted = body<VoteRequest>(voteSchema, request);
    const configuration = wanted.configuration === undefined ? timeline.configuration : configurationFromJson(wanted.configuration);
    const { granted, vote } = timeline.vote(parseTerm(wanted.term), configuration);
    const overtaken = timeline.configuration.generation > configuration.generation;
    return {
      ...(overtaken ? { newer: timelines.configurationOf(timeline) } : {}),
      granted,
      term: vote.term,
      lastLogTerm: vote.lastLogTerm,
      flushRecordLsn: formatLsn(vote.flushRecordLsn),
      lastRecordLsn: formatLsn(vote.lastRecordLsn),
      commitLsn: formatLsn(vote.commitLsn),
      termHistory: historyToJson(vote.termHistory),
    };
  });
  app.post(`${path}/elected`, options, async (request): Promise<ElectedResponse> => {
    const timeline = find(request);
    const wanted = body<ElectedRequest>(electedSchema, request);
    await timelines.elected(
      timeline,
      electedFromJson(wanted, wanted.configuration === undefined ? timeline.configuration : configurationFromJson(wanted.configuration)),
      wanted.donor,
    );
    return { term: timeline.term, flushRecordLsn: formatLsn(timeline.state.flushRecordLsn) };
  });
  app.post(`${path}/subscribe`, options, async (request) =>
    timelines.subscribe(find(request), body<SubscribeRequest>(subscribeSchema, request)),
  );
  // Who the members are is the Manager's to say; a compute may ask.
  app.get(`${path}/configuration`, options, async (request) => timelines.configurationOf(find(request)));
  app.put(`${path}/configuration`, async (request) => {
    const { project, timeline } = params(request);
    return timelines.configure(project, timeline, body<ConfigureRequest>(configureSchema, request));
  });
  app.post(`${path}/catch-up`, async (request) => {
    const timeline = find(request);
    await timelines.catchUp(timeline, body<{ donor: PeerAddress }>(catchUpSchema, request).donor);
    return timeline.status();
  });
  app.post(`${path}/archive-end`, async (request) => {
    const { project, timeline } = params(request);
    return timelines.archiveEnd(project, timeline, body<ArchiveEndRequest>(archiveEndSchema, request));
  });
  app.get('/v1/node', async () => timelines.node());
  app.get('/v1/peer-stream', (_request, reply) => {
    reply.hijack();
    reply.raw.writeHead(200, { 'content-type': 'application/x-ndjson', 'cache-control': 'no-store' });
    reply.raw.socket?.setNoDelay(true);
    feed.add(reply.raw);
  });
}
