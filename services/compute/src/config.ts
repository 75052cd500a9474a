/** Configuration of the compute host. One host serves one machine; it runs one agent process per compute. */
import { commonConfig } from '@lakebase/service-kit';
import { type Static, Type } from 'typebox';

export const computeHostConfig = Type.Object(
  {
    ...commonConfig,
    /** Scratch of computes; wiped at start. */
    dataDir: Type.String(),
    /** Short directory for Unix sockets: a socket path may have 107 bytes. */
    runtimeDir: Type.String(),
    pageserverHttpUrl: Type.String(),
    /** Prefix of an installation of the default major; null: the npm package of this platform. */
    postgresPrefix: Type.Union([Type.String(), Type.Null()], { default: null }),
    /** Prefixes of installations by major, {"17": "/usr/lib/postgresql/17"}; majors that are not here come from npm. */
    postgresInstallations: Type.Record(Type.String({ pattern: '^[0-9]{2}$' }), Type.String(), { default: {} }),
    /** The preload shim, native/pgshim/build/pgshim.so. */
    shimPath: Type.String(),
    /** Agent processes kept ready so that a start does not wait for Node. */
    spareAgents: Type.Integer({ minimum: 0, maximum: 16, default: 1 }),
    /** shared_buffers of every compute unless its settings say otherwise. */
    sharedBuffers: Type.String({ default: '128MB' }),
    /** Local disk of every compute: pages that storage has are dropped beyond it. Null: what the file system has, less a twentieth (at most 2 GiB). */
    cacheBytes: Type.Union([Type.Integer({ minimum: 64 << 20 }), Type.Null()], { default: null }),
    /** Whether the pages that the last compute of a branch used are fetched in the background after a start. */
    prefetch: Type.Boolean({ default: true }),
    /** Whether changed pages are dropped too, once storage has them. */
    settle: Type.Boolean({ default: true }),
    /** WAL that the pageserver may be behind a writer, who is slowed from a quarter of it on. */
    maxIngestLagBytes: Type.Integer({ minimum: 16 << 20, default: 512 << 20 }),
  },
  { additionalProperties: false },
);

export type ComputeHostConfig = Static<typeof computeHostConfig>;
