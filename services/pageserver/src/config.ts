/** Configuration of the pageserver (keys common to all services: service-kit commonConfig). */
import { commonConfig, keyConfig, objectStoreConfig, scrubConfig } from '@lakebase/service-kit';
import { type Static, Type } from 'typebox';

const MIB = 1 << 20;

export const configSchema = Type.Object(
  {
    ...commonConfig,
    ...keyConfig,
    ...objectStoreConfig,
    ...scrubConfig,
    /** The Manager, which gives out generations; null: this disk is all there is, whatever objectStore says. */
    managerUrl: Type.Union([Type.String(), Type.Null()], { default: null }),
    /** Directory of templates and timelines. */
    dataDir: Type.String(),
    /** Address and port of the page service (docs/protocols/page-service.md). */
    pageHost: Type.String({ default: '127.0.0.1' }),
    pagePort: Type.Integer({ minimum: 0, maximum: 65535 }),
    /** Longest wait of a read for WAL that is not ingested yet. */
    waitLsnTimeoutMs: Type.Integer({ default: 30_000, minimum: 1 }),
    /** The open layer is flushed at this size… */
    openLayerBytes: Type.Integer({ default: 64 * MIB, minimum: MIB }),
    /** …or when no WAL came for this long. */
    idleFlushMs: Type.Integer({ default: 60_000, minimum: 100 }),
    /** What is on disk goes into the object store when it covers this much WAL… */
    uploadBytes: Type.Integer({ default: 512 * MIB, minimum: MIB }),
    /** …or is this old… */
    uploadMs: Type.Integer({ default: 300_000, minimum: 10 }),
    /** …or this long after a clean suspend. */
    uploadAfterSuspendMs: Type.Integer({ default: 3_000, minimum: 0 }),
    /** Generations are confirmed this often. */
    validateMs: Type.Integer({ default: 5_000, minimum: 10 }),
    /** With less free space than this no WAL is ingested; with less than twice this, layers that are in the object store too leave the disk. */
    diskReserveBytes: Type.Integer({ default: 256 * MIB, minimum: 0 }),
    /** Old objects are encrypted anew at this rate at most, when that is asked for. */
    reEncryptBytesPerSecond: Type.Integer({ default: 32 * MIB, minimum: 1024 }),
    /** A timeline that nobody has used for this long leaves memory. */
    detachAfterMs: Type.Integer({ default: 300_000, minimum: 10 }),
    /** Size at which merged and image layer files are cut. */
    layerFileBytes: Type.Integer({ default: 128 * MIB, minimum: MIB }),
    /** This many L0 layers are merged into L1. */
    compactionLayers: Type.Integer({ default: 4, minimum: 2 }),
    /** Merging leaves at most about this many records between two images of a page. */
    maxRecordsPerPage: Type.Integer({ default: 200, minimum: 10 }),
    /** In memory, a page with this many pending records gets an image when ingest is caught up. */
    hotPageRecords: Type.Integer({ default: 1_000, minimum: 10 }),
    /** Bounds of the caches of materialised pages and of layer frames. */
    pageCacheBytes: Type.Integer({ default: 64 * MIB, minimum: MIB }),
    frameCacheBytes: Type.Integer({ default: 32 * MIB, minimum: MIB }),
    /** Bound of the local copies of layers that are in the object store too. Without it 20 GiB, or half of what is free, whichever is less. */
    layerCacheBytes: Type.Optional(Type.Integer({ minimum: 64 * MIB })),
  },
  { additionalProperties: false },
);
export type PageserverConfig = Static<typeof configSchema>;
