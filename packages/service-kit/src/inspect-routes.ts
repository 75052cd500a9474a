/** The routes behind `lakebase inspect` in a service that has files and keys. Names are checked here: nothing outside of the timeline's own place can be asked for. */
import type { InspectPageRequest, InspectReport, InspectRequest } from '@lakebase/api';
import { LakebaseError, errorMessage } from '@lakebase/base';
import type { FastifyInstance } from 'fastify';
import { type TObject, Type } from 'typebox';
import { parseConfig } from './config.ts';

const hexId = Type.String({ pattern: '^[0-9a-f]{32}$' });
const limit = Type.Optional(Type.Integer({ minimum: 1, maximum: 10_000 }));
const lsn = Type.String({ pattern: '^[0-9A-Fa-f]{1,8}/[0-9A-Fa-f]{1,8}$' });
const inspectSchema = Type.Object(
  {
    project: hexId,
    timeline: hexId,
    name: Type.String({ maxLength: 200, pattern: '^(?:(?:wal/|damaged/)?[A-Za-z0-9][A-Za-z0-9._-]*)?$' }),
    fromStore: Type.Optional(Type.Boolean()),
    limit,
    frame: Type.Optional(Type.Integer({ minimum: 0 })),
    whole: Type.Optional(Type.Boolean()),
    from: Type.Optional(lsn),
  },
  { additionalProperties: false },
);
const u32 = Type.Integer({ minimum: 0, maximum: 0xffff_ffff });
const pageSchema = Type.Object(
  {
    project: hexId,
    timeline: hexId,
    spc: u32,
    db: u32,
    rel: u32,
    fork: Type.Integer({ minimum: 0, maximum: 3 }),
    block: u32,
    lsn: Type.Union([lsn, Type.Null()]),
    limit,
  },
  { additionalProperties: false },
);

export function addInspectRoutes(
  app: FastifyInstance,
  inspect: (request: InspectRequest) => Promise<InspectReport>,
  inspectPage?: (request: InspectPageRequest) => Promise<InspectReport>,
): void {
  app.post('/v1/inspect', async (request) => inspect(checked<InspectRequest>(inspectSchema, request.body)));
  if (inspectPage !== undefined)
    app.post('/v1/inspect/page', async (request) => inspectPage(checked<InspectPageRequest>(pageSchema, request.body)));
}

function checked<T>(schema: TObject, body: unknown): T {
  let parsed: T & { name?: string };
  try {
    parsed = parseConfig(schema, body ?? {}, 'request body') as T & { name?: string };
  } catch (error) {
    throw new LakebaseError('INVALID_ARGUMENT', errorMessage(error), { cause: error });
  }
  if (parsed.name?.includes('..') === true) throw new LakebaseError('INVALID_ARGUMENT', 'that is no name of a file');
  return parsed;
}
